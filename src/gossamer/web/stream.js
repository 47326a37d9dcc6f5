// One streamed chat completion: an async generator of choices. Aborting the signal ends it, and the
// server frees the slot when the connection closes.

export class Refused extends Error {}

export async function* complete(body, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST", signal, headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, truncation: "auto" }),
  });
  if (!response.ok) throw new Refused(await reason(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Refused("The connection ended before the reply did.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(chunk.error.message);
      if (chunk.choices.length) yield { ...chunk.choices[0], dropped: chunk.dropped_messages || 0 };
    }
  }
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}
