// Starting and ending the runtime, as every kind of host does it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

export const READY_LINE = "MLX Runtime ready";
const START_LIMIT_MS = 120_000;
const EXIT_LIMIT_MS = 120_000;

/** Fails after `limit` milliseconds unless `promise` settles before. */
export function within(limit, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took more than ${limit} ms`)), limit);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Starts the command; resolves with the process once the ready line is on its stderr. */
export async function start([command, ...args]) {
  const runtime = spawn(command, args, { stdio: ["pipe", "pipe", "pipe"] });
  const lines = createInterface({ input: runtime.stderr });
  const ready = new Promise((resolve, reject) => {
    lines.on("line", (line) => {
      process.stderr.write(`runtime: ${line}\n`);
      if (line === READY_LINE) resolve();
    });
    runtime.once("error", reject);
    runtime.once("exit", (code) => reject(new Error(`the runtime exited with ${code} before it was ready`)));
  });
  await within(START_LIMIT_MS, "starting", ready);
  return runtime;
}

/** Resolves when the process has exited with status 0. */
export async function ended(runtime) {
  if (runtime.exitCode === null) await within(EXIT_LIMIT_MS, "exiting", once(runtime, "exit"));
  assert.equal(runtime.exitCode, 0, "exit status");
}

/** Runs `host` with the command after `skip` arguments and reports as JSON on stdout; exits with 1 on failure. */
export async function main(skip, host) {
  const args = process.argv.slice(2);
  try {
    const report = await host(args.slice(skip), ...args.slice(0, skip));
    process.stdout.write(`${JSON.stringify(report)}\n`);
    process.exit(0);
  } catch (error) {
    process.stderr.write(`${error.stack}\n`);
    process.exit(1);
  }
}
