// Markdown to DOM nodes: paragraphs, headings, lists, tables, quotes, code, emphasis, links. Text only ever
// becomes text nodes, so nothing a model writes can become markup of its own.

export function render(text) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = line.match(/^\s*```(.*)$/);
    if (fence) {
      const code = [];
      for (at++; at < lines.length && !/^\s*```\s*$/.test(lines[at]); at++) code.push(lines[at]);
      at++;
      out.append(make("pre", make("code", code.join("\n"))));
      continue;
    }
    const heading = line.match(/^(#{1,4})\s+(.*)$/);
    if (heading) {
      // The page has one h1; a model's headings begin below it.
      out.append(make("h" + (heading[1].length + 2), ...inline(heading[2])));
      at++;
      continue;
    }
    const bullet = /^\s*[-*+]\s+/, number = /^\s*\d+[.)]\s+/;
    const item = bullet.test(line) ? bullet : number.test(line) ? number : null;
    if (item) {
      const list = make(item === bullet ? "ul" : "ol");
      if (item === number) list.start = parseInt(line.trim(), 10);
      for (; at < lines.length && item.test(lines[at]); at++) {
        list.append(make("li", ...inline(lines[at].replace(item, ""))));
      }
      out.append(list);
      continue;
    }
    if (/^\s*>/.test(line)) {
      const quoted = [];
      for (; at < lines.length && /^\s*>/.test(lines[at]); at++) quoted.push(lines[at].replace(/^\s*> ?/, ""));
      out.append(make("blockquote", render(quoted.join("\n"))));
      continue;
    }
    if (line.includes("|") && RULE.test(lines[at + 1] ?? "")) {
      const rows = [row(line, "th")];
      for (at += 2; at < lines.length && lines[at].includes("|"); at++) rows.push(row(lines[at], "td"));
      out.append(make("table", make("tbody", ...rows)));
      continue;
    }
    if (!line.trim()) { at++; continue; }
    const paragraph = make("p");
    for (let first = true; at < lines.length && lines[at].trim() && (first || !opens(lines[at])); at++) {
      if (!first) paragraph.append(make("br"));
      paragraph.append(...inline(lines[at]));
      first = false;
    }
    out.append(paragraph);
  }
  return out;
}

const RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/; // the line below a table's head

function row(line, cell) {
  const cells = line.trim().replace(/^\||\|$/g, "").split("|");
  return make("tr", ...cells.map((text) => make(cell, ...inline(text.trim()))));
}

function opens(line) {
  return /^\s*(```|[-*+]\s+|\d+[.)]\s+|>)|^#{1,4}\s+/.test(line);
}

const SPANS = [
  [/`([^`]+)`/, (m) => make("code", m[1])],
  [/\*\*(?=\S)(.+?)\*\*/, (m) => make("strong", ...inline(m[1]))],
  [/(?<![\w*])\*(?=\S)([^*]+?)\*(?![\w*])/, (m) => make("em", ...inline(m[1]))],
  [/\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/, (m) => link(m[2], ...inline(m[1]))],
  [/https?:\/\/[^\s<>")]+[^\s<>").,;:!?]/, (m) => link(m[0], m[0])],
];

function inline(text) {
  let best = null;
  for (const [pattern, build] of SPANS) {
    const found = text.match(pattern);
    if (found && (best === null || found.index < best.found.index)) best = { found, build };
  }
  if (best === null) return text ? [text] : [];
  const { found, build } = best;
  return [...(found.index ? [text.slice(0, found.index)] : []), build(found),
          ...inline(text.slice(found.index + found[0].length))];
}

function link(address, ...content) {
  const node = make("a", ...content);
  node.href = address;
  node.rel = "noopener noreferrer";
  node.target = "_blank";
  return node;
}

export function make(name, ...content) {
  const node = document.createElement(name);
  node.append(...content);
  return node;
}
