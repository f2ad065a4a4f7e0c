// The page's Markdown on texts that are made to take long: `node tests/page/markdown.mjs`. Each must
// be drawn within a time that is ample for any machine where the time grows with the text's length,
// and far too short where it grows with its square.

import { readFileSync } from "node:fs";
import vm from "node:vm";

const PAGE = new URL("../../crates/server/src/page/index.html", import.meta.url);
const PATIENCE_MS = 120_000;
const SIZES = [100_000, 1_000_000];

// Beginning, what is repeated, and end.
const TEXTS = [
  ...["*", "**", "**a ", "*a ", "***", "_", "__", "__a ", "_a ", "~~", "~~a\n", "`", "`a", "`a``b", "``a`b ", "\\", "\\`"].map(unit => ["", unit, ""]),
  ...["[", "![a](", "[a](http://x", "[a](http://x \"", "[a](http://(x)", "[a](http://x) ", "http://", "http://.", "http://a. "].map(unit => ["", unit, ""]),
  ...["> ", ">", "> a\n", "- ", "- a\n", "  - a\n", "1. ", "- a\n\n", "# ", "#", "a\n\n", "a\n", "\n", " \n", "---\n", "~~~", "~~~\n", "```\n"].map(unit => ["", unit, ""]),
  ...["| ", "|", "|\n", "| a | b |\n"].map(unit => ["", unit, ""]),
  ["a | b\n--|--\n", "a | b | c\n", ""],
  ["|", "a|", "\n-|-\n"],
  ["| a\n", "-|", " x"],
  ["# a", " ", "b"],
  ["# ", "#", "x"],
  ["# a\u2028", " ", "\u2028b"],
  ["", "~", "`"],
  ["```", " ", "`"],
  ["- ", "- ", "x"],
  ["", "- ", "x"],
  ["a |\n|", " ", "x"],
  ["a |\n", " -", "x"],
  ["` ", "a", "`"],
  ["` ", "a ", "b`"],
  ["*a", " ", "*"],
  ["__", "a__b ", ""],
  ["", "__a", "_"],
  ["[", "a", "]"],
  ["[a](http://x ", "\"a", ""],
  ["[a](http://x", "(x)", ""],
  ["", " ", "x"],
  ["", "\t\n", "x"],
  ["", Array.from({ length: 400 }, (_, count) => "`".repeat(count + 1) + "a").join(""), ""],
];

class Element {
  constructor(tag) { this.tag = tag; this.inside = []; }
  append(...inside) { for (const child of inside) this.inside.push(child); }
  setAttribute() {}
}

const page = readFileSync(PAGE, "utf8");
const between = (from, to) => page.slice(page.indexOf(from), page.indexOf(to));
const context = vm.createContext({ document: { createElement: tag => new Element(tag) } });
vm.runInContext(
  between("/** Quotes in lists", "/** Letters of a chat") + between("function el(", "/* What the browser keeps.") +
    between("/* Markdown, ", "/* Turns on the page."),
  context,
);

for (const size of SIZES) {
  for (const [begin, unit, end] of TEXTS) {
    context.text = begin + unit.repeat(Math.ceil(size / unit.length)) + end;
    try {
      vm.runInContext("markdown(el('div'), text)", context, { timeout: PATIENCE_MS });
    } catch (error) {
      throw new Error(`${JSON.stringify([begin.slice(0, 20), unit.slice(0, 20), end])} of ${size} letters`, { cause: error });
    }
  }
}
console.log(`${TEXTS.length} texts of ${SIZES.join(" and ")} letters were drawn`);
