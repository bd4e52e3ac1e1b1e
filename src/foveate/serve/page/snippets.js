// A request as a command and as Python, to be run elsewhere. No key is in them: it comes from FOVEATE_API_KEY.

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function literal(value, indent = "") {
  const inner = `${indent}    `;
  const lines = (items, open, close) => (items.length ? `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}` : open + close);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  if (!Array.isArray(value)) return lines(Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, inner)}`), "{", "}");
  return value.every((item) => typeof item === "number") ? `[${value.join(", ")}]` : lines(value.map((item) => literal(item, inner)), "[", "]");
}

// The body comes from standard input: with an image it is longer than an argument may be.
export function asCurl(url, body, guarded) {
  const key = guarded ? " \\\n  -H \"Authorization: Bearer $FOVEATE_API_KEY\"" : "";
  return `curl -N ${quote(url)} \\\n  -H 'Content-Type: application/json'${key} \\\n  --data-binary @- <<'BODY'\n${JSON.stringify(body, null, 2)}\nBODY`;
}

export function asPython(url, body, guarded) {
  const key = guarded ? 'os.environ["FOVEATE_API_KEY"]' : '"none"', start = guarded ? "import os\n\n" : "";
  if (!url.endsWith("/chat/completions")) {
    const headers = guarded ? `, headers={"Authorization": "Bearer " + ${key}}` : "";
    return `${start}import httpx\n\nbody = ${literal(body)}\nreply = httpx.post(${JSON.stringify(url)}, json=body${headers}, timeout=120)\nprint(reply.json())`;
  }
  const { foveate, ...fields } = body, base = JSON.stringify(url.replace("/chat/completions", ""));
  const values = Object.entries(fields).map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`);
  if (foveate) values.push(`    extra_body={"foveate": ${literal(foveate, "    ")}},\n`);
  return `${start}from openai import OpenAI\n\nclient = OpenAI(base_url=${base}, api_key=${key})\nstream = client.chat.completions.create(\n${values.join("")})\n`
    + 'for chunk in stream:\n    for choice in chunk.choices:\n        print(choice.delta.content or "", end="")';
}

// Cut data URLs for reading.
export const shorten = (body) => JSON.parse(JSON.stringify(body, (name, value) => (
  typeof value === "string" && value.startsWith("data:") ? `${value.slice(0, 34)}… (${Math.ceil(value.length / 1000)} kB)` : value)));
