// On the socket that LISTEN_FDS announces, or else at the port given as the first argument.
const { createServer } = require('http');
const where = process.env.LISTEN_FDS ? { fd: 3 } : { port: Number(process.argv[2]), host: '127.0.0.1' };
createServer((request, response) => response.end(`hello from 1, pid ${process.pid}\n`)).listen(where);
