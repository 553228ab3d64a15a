// `hello PID` on the listening socket at the descriptor given as the first argument (3); /slow takes 0.6 seconds.
const server = require('http').createServer((request, response) => {
  setTimeout(() => response.end(`hello ${process.pid}\n`), request.url === '/slow' ? 600 : 0);
});
server.listen({ fd: Number(process.argv[2] ?? 3) });
process.on('SIGTERM', () => server.close(() => process.exit(0)));
