// What users of the Vercel AI SDK do: text, streams, tools, objects. Prints what came as one line
// of JSON.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [url, apiKey, name, provider] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey });
const model = {
  responses: () => openai.responses(name),
  chat: () => openai.chat(name),
  compatible: () =>
    createOpenAICompatible({
      name: "kilotok",
      baseURL: `${url}/v1`,
      apiKey,
      includeUsage: true,
      supportsStructuredOutputs: true,
    })(name),
  messages: () => createAnthropic({ baseURL: `${url}/v1`, apiKey })(name),
}[provider]();

const call = (a, b, name = "add") =>
  `<tool_call>\n<function=${name}>\n<parameter=a>${a}</parameter>\n` +
  `<parameter=b>${b}</parameter>\n</function>\n</tool_call>`;
const told = (...replies) => `say:${replies.join("\nnext:")}`;
const numbers = z.object({ a: z.number().int(), b: z.number().int() });
const add = tool({
  description: "Adds two numbers.",
  inputSchema: numbers,
  execute: async ({ a, b }) => a + b,
});
// Items of a conversation are sent whole, and not as references to stored ones.
const common = { model, maxRetries: 0, providerOptions: { openai: { store: false } } };

const text = await generateText({ ...common, prompt: told("hello there") });
const stream = streamText({ ...common, prompt: told("hello there"), onError: () => {} });
let deltas = "";
for await (const part of stream.fullStream) {
  if (part.type === "error") throw part.error;
  if (part.type === "text-delta") deltas += part.text;
}

const task = { ...common, tools: { add }, stopWhen: stepCountIs(5) };
const prompt = told("Adding." + call(1, 2), call(3, 3), "Three and six.");
const steps = await generateText({ ...task, prompt });
const streamed = streamText({ ...task, prompt, onError: () => {} });
const results = [];
for await (const part of streamed.fullStream) {
  if (part.type === "error") throw part.error;
  if (part.type === "tool-result") results.push(part.output);
}

const output = Output.object({ schema: numbers });
// Of models that it does not know, the provider of Anthropic asks for a call of a tool `json`.
const written = provider === "messages" ? call(1, 2, "json") : '{"a": 1, "b": 2}';
const object = await generateText({ ...common, output, prompt: told(written) });
console.log(
  JSON.stringify({
    text: text.text,
    finish: text.finishReason,
    usage: text.usage.outputTokens,
    deltas,
    streamUsage: (await stream.usage).outputTokens,
    results: steps.steps.flatMap((step) => step.toolResults.map((result) => result.output)),
    final: steps.text,
    streamResults: results,
    streamFinal: await streamed.text,
    object: object.output,
  }),
);
