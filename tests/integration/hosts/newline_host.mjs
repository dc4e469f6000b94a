// A host that speaks newline-delimited JSON-RPC and forgives nothing: a line on stdout that is not JSON, or that is
// longer than 64 KiB, ends the conversation.
//
// Usage: node newline_host.mjs MODEL COMMAND...

import assert from "node:assert/strict";
import { ended, main, start, within } from "./runtime.mjs";

const LONGEST_LINE = 64 * 1024;
const MOST_PENDING = 100;
const DEFAULT_TIMEOUT_MS = 300_000;
const BATCH_METHODS = ["batch_tokenize", "batch_check_draft", "batch_generate"];

class Connection {
  #runtime;
  #pending = new Map();
  #streams = new Map();
  #rest = Buffer.alloc(0);
  #nextId = 1;
  broken = null;
  longestLine = 0;
  /** Codes of errors that belong to no request. */
  strayErrors = [];

  constructor(runtime) {
    this.#runtime = runtime;
    runtime.stdout.on("data", (data) => this.#take(data));
  }

  request(method, params, id = this.#nextId++) {
    assert.ok(this.#pending.size < MOST_PENDING, "too many pending requests");
    const answered = new Promise((resolve, reject) => this.#pending.set(id, { resolve, reject }));
    this.#runtime.stdin.write(`${JSON.stringify({ jsonrpc: "2.0", id, method, params })}\n`);
    return within(DEFAULT_TIMEOUT_MS, method, answered);
  }

  /** Notifications of a stream from now on; `ended` resolves with all of them at the terminal event. */
  watch(streamId) {
    const stream = { notifications: [] };
    stream.begun = new Promise((resolve) => (stream.begin = resolve));
    stream.ended = new Promise((resolve) => (stream.end = resolve));
    this.#streams.set(streamId, stream);
    return stream;
  }

  #take(data) {
    let bytes = Buffer.concat([this.#rest, data]);
    for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10)) {
      this.#line(bytes.subarray(0, end + 1));
      bytes = bytes.subarray(end + 1);
    }
    this.#rest = bytes;
    if (this.#rest.length > LONGEST_LINE) this.#break("a line without an end");
  }

  #line(line) {
    this.longestLine = Math.max(this.longestLine, line.length);
    if (line.length > LONGEST_LINE) return this.#break(`a line of ${line.length} bytes`);
    let message;
    try {
      message = JSON.parse(line.toString("utf8"));
    } catch {
      return this.#break(`not JSON: ${line}`);
    }
    if (message.method !== undefined) this.#notified(message);
    else this.#answered(message);
  }

  #answered({ id, result, error }) {
    if (id === null) return this.strayErrors.push(error.code);
    const waiting = this.#pending.get(id);
    if (waiting === undefined) return this.#break(`an answer to nothing: ${id}`);
    this.#pending.delete(id);
    if (error) waiting.reject(Object.assign(new Error(error.message), { code: error.code, data: error.data }));
    else waiting.resolve(result);
  }

  #notified(message) {
    const stream = this.#streams.get(message.params.stream_id);
    if (stream === undefined) return this.#break(`an unknown stream: ${message.params.stream_id}`);
    stream.notifications.push(message);
    stream.begin();
    if (message.method === "stream.event") stream.end(stream.notifications);
  }

  #break(problem) {
    this.broken = problem;
    for (const { reject } of this.#pending.values()) reject(new Error(problem));
    this.#runtime.kill("SIGKILL");
  }
}

function refused(promise, code) {
  return assert.rejects(promise, (error) => error.code === code);
}

/** The text of a stream whose notifications came in order: chunks, stats, one completed event. */
function checkedText(notifications) {
  const [event, stats, ...chunks] = notifications.toReversed();
  assert.equal(event.params.event, "completed");
  assert.equal(event.params.is_final, true);
  assert.ok(["stop", "length"].includes(event.params.finish_reason));
  assert.equal(stats.method, "stream.stats");
  assert.ok(stats.params.total_time >= stats.params.time_to_first_token);
  const tokens = chunks.toReversed().flatMap(({ method, params }) => {
    assert.equal(method, "stream.chunk");
    if (params.is_batch) assert.equal(params.batch_size, params.tokens.length);
    else assert.equal(params.is_final, false);
    return params.is_batch ? params.tokens : [params];
  });
  for (const token of tokens) assert.ok(Number.isInteger(token.token_id) && token.token_id >= 0);
  return tokens.map((token) => token.token).join("");
}

async function generate(connection, streamId, params) {
  const stream = connection.watch(streamId);
  const started = await connection.request("generate", { stream_id: streamId, streaming: true, ...params });
  assert.equal(started.stream_id, streamId);
  assert.ok(Math.abs(Date.now() / 1000 - started.started_at) < 60);
  return checkedText(await stream.ended);
}

async function cancel(connection, model) {
  const stream = connection.watch("cancelled");
  await connection.request("generate", { model_id: model, prompt: "Count:", stream_id: "cancelled", max_tokens: 4000 });
  await stream.begun;
  assert.deepEqual(await connection.request("cancel", { stream_id: "cancelled" }), { success: true });
  const event = (await stream.ended).at(-1).params;
  assert.deepEqual([event.event, event.code, event.is_final], ["error", -32800, true]);
}

await main(1, async (command, model) => {
  const runtime = await start(command);
  const connection = new Connection(runtime);
  const info = await connection.request("runtime/info", undefined, "readiness-probe");
  assert.equal(info.protocol, "json-rpc-2.0");
  const batches = BATCH_METHODS.every((method) => info.capabilities.includes(method));

  const loaded = await connection.request("load_model", { model_id: model, draft: false });
  assert.deepEqual([loaded.model_id, loaded.state, loaded.is_vision_model], [model, "ready", false]);
  const state = await connection.request("runtime/state");
  assert.deepEqual(state.loaded_models, [{ model_id: model, state: "ready", type: "text" }]);

  const params = { model_id: model, prompt: "The capital of France is", max_tokens: 8, temperature: 0 };
  const text = await generate(connection, "first", params);
  const together = await Promise.all(["a", "b", "c"].map((id) => generate(connection, id, params)));
  assert.deepEqual(together, [text, text, text]);
  await cancel(connection, model);

  const { tokens } = await connection.request("tokenize", { model_id: model, text: "Hello world" });
  assert.equal((await connection.request("detokenize", { model_id: model, tokens })).text, "Hello world");
  await refused(connection.request("generate", { model_id: "unknown", prompt: "a" }), -32005);
  await refused(connection.request("generate", { ...params, guidance: { schema: {} } }), -32602);
  await refused(connection.request("check_draft", { primary_id: model, draft_id: model }), -32601);
  runtime.stdin.write('{"jsonrpc":\n');
  assert.deepEqual(await connection.request("unload_model", { model_id: model }), { success: true });
  assert.equal(await generate(connection, "loaded again", params), text);
  assert.deepEqual(connection.strayErrors, [-32700]);

  assert.deepEqual(await connection.request("shutdown"), { success: true });
  await ended(runtime);
  assert.equal(connection.broken, null);
  return { text, batches, longest_line: connection.longestLine };
});
