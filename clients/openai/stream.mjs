// Writes an image while it forms, with OpenAI's client for Node.js: `node stream.mjs`.
import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const address = process.env.LATENTWIRE_BRIDGE ?? "http://localhost:9225";
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "random-string" });
const stream = await client.images.generate({
  model: "dall-e-3",
  prompt: "a blue heart on a yellow background",
  size: "512x512",
  stream: true,
  partial_images: 2,
});
for await (const event of stream) {
  const isLast = event.type === "image_generation.completed";
  const name = isLast ? "heart.png" : `heart-${event.partial_image_index}.png`;
  await writeFile(name, Buffer.from(event.b64_json, "base64"));
  console.log(name);
}
