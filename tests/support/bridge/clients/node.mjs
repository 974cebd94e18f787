// Runs the calls on standard input with `openai` for Node.js; prints what its user gets.
// One line of JSON per call and result.

import { createInterface } from "node:readline";

import OpenAI, { APIError, toFile } from "openai";
import { VERSION } from "openai/version";

async function run(call) {
  const { base_url, api_key, timeout, max_retries } = call.client;
  const client = new OpenAI({
    baseURL: base_url,
    apiKey: api_key,
    timeout: timeout * 1000,
    maxRetries: max_retries,
  });
  const answer = await answerOf(client, call);
  if (!call.stream) {
    return { answer };
  }
  const events = [];
  for await (const event of answer) {
    events.push(event);
    if (events.length === call.leave_after) {
      break;
    }
  }
  return { events };
}

async function answerOf(client, call) {
  const body = { ...call.fields, ...call.extra };
  for (const [name, data] of Object.entries(call.files)) {
    body[name] = await toFile(Buffer.from(data, "base64"), `${name}.png`, { type: "image/png" });
  }
  if (call.stream) {
    body.stream = true;
  }
  switch (call.method) {
    case "generate":
      return client.images.generate(body);
    case "edit":
      return client.images.edit(body);
    case "vary":
      return client.images.createVariation(body);
    case "list":
      return { data: (await client.models.list()).data };
    case "retrieve":
      return client.models.retrieve(body.model);
  }
}

function errorOf(error) {
  return {
    class: error.constructor.name,
    shown: String(error),
    message: error.message,
    code: error.code ?? null,
    param: error.param ?? null,
    status: error.status ?? null,
    request_id: error.requestID ?? null,
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  let outcome;
  try {
    outcome = await run(JSON.parse(line));
  } catch (error) {
    if (!(error instanceof APIError)) {
      throw error;
    }
    outcome = { error: errorOf(error) };
  }
  console.log(JSON.stringify({ version: VERSION, ...outcome }));
}
