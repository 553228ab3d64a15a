// The unmodified kind: binds the port given as the first argument by itself (for --intercept).
const server = require('http').createServer((request, response) => response.end(`hello ${process.pid}\n`));
server.listen(Number(process.argv[2]), '127.0.0.1');
process.on('SIGTERM', () => server.close(() => process.exit(0)));
