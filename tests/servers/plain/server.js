// `hello PID` at the port given as the first argument, which it opens itself.
const server = require('http').createServer((request, response) => response.end(`hello ${process.pid}\n`));
server.listen(Number(process.argv[2]));
