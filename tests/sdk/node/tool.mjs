// Streams a reply with a tool call through openai-node. Prints what came as one line of JSON.
import OpenAI from "openai";

const [url, key, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const call =
  "<tool_call>\n<function=add>\n<parameter=a>1</parameter>\n" +
  "<parameter=b>2</parameter>\n</function>\n</tool_call>";
const number = { type: "integer" };
const parameters = { type: "object", properties: { a: number, b: number } };
const stream = client.chat.completions.stream({
  model,
  messages: [{ role: "user", content: `say:Sum. ${call}` }],
  tools: [{ type: "function", function: { name: "add", parameters } }],
  temperature: 0,
});
let deltas = "";
for await (const chunk of stream) deltas += chunk.choices[0]?.delta?.content ?? "";
const [choice] = (await stream.finalChatCompletion()).choices;
const { name, arguments: text } = choice.message.tool_calls[0].function;
const finish = choice.finish_reason;
console.log(JSON.stringify({ deltas, name, arguments: JSON.parse(text), finish }));
