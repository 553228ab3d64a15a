// `hello PID` on the listening socket at the descriptor given as the first argument, or on PORT if that is set; /slow takes
// two seconds. With `close` as the second argument SIGTERM closes the server, without it ends the process.
const [fd, stop] = process.argv.slice(2);
const server = require('http').createServer((request, response) => {
  const answer = () => response.end(`hello ${process.pid}\n`);
  if (request.url === '/slow') setTimeout(answer, 2000);
  else answer();
});
const { PORT } = process.env;
server.listen(PORT ? { host: '127.0.0.1', port: Number(PORT) } : { fd: Number(fd) });
if (stop === 'close') process.on('SIGTERM', () => server.close(() => process.exit(0)));
