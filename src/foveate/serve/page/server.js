// Requests to the server that the page comes from, with the key of this tab.

export const access = { key: "" }; // in memory alone, so that no key outlives the tab

export async function request(path, body, signal) {
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(access.key && { Authorization: `Bearer ${access.key}` }) };
  const text = body && JSON.stringify(body), size = Math.round((text?.length ?? 0) / 2 ** 20);
  let reply;
  try {
    reply = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: text });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // A body above the limit is refused unread: the connection may end before the browser reads why.
    throw new Error(`The server does not answer${size > 16 ? ` a request of ${size} MB; see --max-body-mb.` : ". Is it still running?"}`);
  }
  if (reply.ok) return reply;
  if (reply.status === 401) dispatchEvent(new Event("locked"));
  const sentence = await reply.json().then((content) => content.error.message, () => `HTTP status ${reply.status}`);
  throw new Error(sentence);
}

export async function* readEvents(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => { throw error.name === "AbortError" ? error : new Error("The connection broke off."); });
    if (done) throw new Error("The answer ended early: the server closed the connection.");
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const content = line.slice(5).trim();
      if (content === "[DONE]") return;
      const event = JSON.parse(content);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// An <img> sends no key, so that images of an index are fetched first.
export const readImage = async (address) => (await request(address.replace(/^\//, ""))).blob();

export const readReply = async (path, body, signal) => (await request(path, body, signal)).json();
export const readData = async (path, body, signal) => (await readReply(path, body, signal)).data;
