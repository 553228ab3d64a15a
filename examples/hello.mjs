#!/usr/bin/env node
// handoff-run --listen 127.0.0.1:8000 -- examples/hello.mjs, with that very line in UPGRADE for SIGUSR2.
// What it does not do: bound how long a drain takes beyond node's own headersTimeout, take a second socket, or check
// LISTEN_PID.
import { spawn } from 'node:child_process';
import { closeSync, writeSync } from 'node:fs';
import { createServer } from 'node:http';

const server = createServer((request, response) => {
  const body = `hello from ${process.env.HELLO_VERSION ?? '1'}, pid ${process.pid}\n`;
  response.writeHead(200, { 'Content-Length': body.length, Connection: 'close' }).end(body);
});

let upgrading = false;
process.on('SIGUSR2', () => {
  if (upgrading) return;
  upgrading = true;
  // Node makes every descriptor close-on-exec: the 3 here passes on ours, and 'pipe' is the successor's READY_FD 4.
  const stdio = ['inherit', 'inherit', 'inherit', 3, 'pipe'];
  const successor = spawn('sh', ['-c', process.env.UPGRADE], { stdio, env: { ...process.env, READY_FD: '4' } });
  successor.unref();
  const ready = successor.stdio[4];
  ready.once('data', () => { server.close(); ready.destroy(); });
  ready.once('end', () => { upgrading = false; console.error('hello.mjs: the successor never served, serving on'); });
});
process.on('SIGTERM', () => server.close());

// Node calls listen(2) again, whose backlog holds for all generations: not its default of 511.
server.listen({ fd: 3, backlog: 4096 }, () => {
  if (!process.env.READY_FD) return;
  writeSync(+process.env.READY_FD, '\n');
  closeSync(+process.env.READY_FD);
  delete process.env.READY_FD;
});
