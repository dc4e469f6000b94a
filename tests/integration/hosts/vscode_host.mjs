// An editor: the real vscode-jsonrpc library, Content-Length framing, $/progress and $/cancelRequest.
//
// Usage: node vscode_host.mjs LIBRARY_VERSION MODEL COMMAND...

import assert from "node:assert/strict";
import { ended, main, start } from "./runtime.mjs";

async function connect(version, runtime) {
  const { default: rpc } = await import(`vscode-jsonrpc-${version}/node`);
  const connection = rpc.createMessageConnection(
    new rpc.StreamMessageReader(runtime.stdout),
    new rpc.StreamMessageWriter(runtime.stdin),
  );
  const problems = [];
  connection.onError(([error]) => problems.push(error.message));
  connection.onUnhandledNotification((message) => problems.push(`unhandled ${message.method}`));
  connection.listen();
  return { rpc, connection, problems };
}

function tokensOf(value) {
  return value.is_batch ? value.tokens : [value];
}

async function edit(command, version, model) {
  const runtime = await start(command);
  const { rpc, connection, problems } = await connect(version, runtime);
  const loaded = await connection.sendRequest("load_model", { model_id: model });
  assert.equal(loaded.state, "ready");

  const progress = [];
  const type = new rpc.ProgressType();
  const listening = connection.onProgress(type, "mine", (value) => progress.push(value));
  const messages = [{ role: "user", content: "Name the capital of France." }];
  const params = { model_id: model, messages, max_tokens: 8, temperature: 0 };
  const answer = await connection.sendRequest("chat", { ...params, partialResultToken: "mine" });
  listening.dispose();
  assert.ok(progress.length > 0);
  assert.equal(progress.flatMap(tokensOf).map((token) => token.token).join(""), answer.text);
  assert.ok(["stop", "length"].includes(answer.finish_reason));
  assert.equal(answer.usage.completion_tokens, answer.stats.tokens_generated);

  const ends = new Promise((resolve) => {
    let text = "";
    connection.onNotification("stream.chunk", (value) => (text += tokensOf(value).map((each) => each.token).join("")));
    connection.onNotification("stream.stats", () => undefined);
    connection.onNotification("stream.event", (event) => resolve([text, event.event]));
  });
  await connection.sendRequest("chat", { ...params, stream_id: "told" });
  assert.deepEqual(await ends, [answer.text, "completed"]);

  const source = new rpc.CancellationTokenSource();
  const endless = { model_id: model, prompt: "Count:", max_tokens: 4000, partialResultToken: 7 };
  connection.onProgress(type, 7, () => source.cancel());
  await assert.rejects(connection.sendRequest("generate", endless, source.token), (error) => error.code === -32800);

  const wrong = connection.sendRequest("generate", { model_id: model, prompt: "a", temprature: 1 });
  await assert.rejects(wrong, (error) => error.code === -32602 && error.data.field === "temprature");
  await assert.rejects(connection.sendRequest("nonsense"), (error) => error.code === rpc.ErrorCodes.MethodNotFound);
  const long = "a ".repeat(50_000);
  const tokenized = await connection.sendRequest("tokenize", { model_id: model, text: long });
  const back = await connection.sendRequest("detokenize", { model_id: model, tokens: tokenized.tokens });
  assert.equal(back.text, long);

  assert.deepEqual(await connection.sendRequest("shutdown"), { success: true });
  await ended(runtime);
  assert.deepEqual(problems, []);
  return { text: answer.text };
}

await main(2, edit);
