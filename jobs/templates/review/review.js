"use strict";
// The queue's keys, the timeline, and the drafts that survive a reload. Everything else is rendered by the server.

const $ = (id) => document.getElementById(id);
const page = document.body.dataset.page, query = document.body.dataset.query;
const name12 = () => [...crypto.getRandomValues(new Uint8Array(6))].map((b) => b.toString(16).padStart(2, "0")).join("");

function say(text, bad) {
  const said = $("said");
  said.textContent = text;
  said.className = bad ? "bad" : "";
  said.hidden = !text;
}

async function send(path, body) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  } catch {
    throw new Error("The server does not answer: perhaps nothing was saved. Your draft stays; try again.");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error || `Refused (${answer.status})`);
  return said;
}

let busy = false;
async function once(work) {
  if (busy) return;
  busy = true;
  try { await work(); } catch (error) { say(error.message, true); } finally { busy = false; }
}

// A decision keeps its name until the server has answered: sent again after a failure, it is taken once.
async function named(path, key, body) {
  const slot = `name ${path} ${key}`;
  const judgement = sessionStorage.getItem(slot) || name12();
  sessionStorage.setItem(slot, judgement);
  try {
    const said = await send(path, { ...body, judgement });
    sessionStorage.removeItem(slot);
    return said;
  } catch (error) {
    if (!error.message.startsWith("The server")) sessionStorage.removeItem(slot);
    throw error;
  }
}

async function undo() {
  const said = await named("/undo", "", {});
  location.href = `/clip/${encodeURIComponent(said.clip_id)}?${query}`;
}

function desk(main) {
  const clip = main.dataset.clip, film = JSON.parse(main.dataset.film), form = $("tell"), video = $("film");
  const kept = `draft ${clip}`;
  const following = `/next?${query}${query ? "&" : ""}after=${encodeURIComponent(clip)}`;
  let from = film ? film.from - film.start : 0, until = film ? film.until - film.start : 0, inside = false;

  // -- the timeline: frames of the clip, each at its own time
  const last = film ? film.times.length : 0;
  const at = (frame) => (frame >= last ? film.length : film.times[frame]);
  const frameAt = (time) => {
    let low = 0, high = last - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (film.times[middle] <= time + 1e-4) low = middle; else high = middle - 1; }
    return low;
  };
  const place = (element, a, b) => { element.style.left = `${100 * a / film.length}%`; if (b !== undefined) element.style.width = `${100 * (b - a) / film.length}%`; };
  const seek = (frame) => { video.pause(); video.currentTime = at(Math.max(0, Math.min(last - 1, frame))) + 1e-3; };

  function sample() {
    const length = at(until) - at(from), frames = until - from, own = frames / length;
    for (const rate of film.rates)
      if (frames >= film.frames && own >= rate * 0.999 && length >= film.frames / rate - 1 / own - 1e-3) return { rate, shown: Math.min(length, film.frames / rate) };
    return null;
  }

  function draw() {
    if (!film) return;
    place($("span"), at(from), at(until)); place($("from"), at(from)); place($("until"), at(until));
    const length = at(until) - at(from), made = sample(), margin = made ? (length - made.shown) / 2 : 0;
    place($("written"), at(from) + margin, at(until) - margin);
    $("timeline").classList.toggle("wrong", !made);
    $("length").textContent = `${length.toFixed(2)} s, ${at(from).toFixed(2)} to ${at(until).toFixed(2)} s`;
    $("sample").className = made ? "" : "bad";
    const centre = made && margin > 0.05 ? `, its centre ${made.shown.toFixed(2)} s` : "";
    $("sample").textContent = made ? `sample: ${film.frames} frames at ${made.rate} fps${centre}` : `too short: ${film.frames} frames at 24 fps are ${(film.frames / 24).toFixed(2)} s`;
  }

  function trim(a, b, show) {
    from = Math.max(0, Math.min(a, last - 1)); until = Math.max(from + 1, Math.min(b, last));
    draw(); save();
    if (show !== undefined) seek(show);
  }
  const slide = (by) => { const move = Math.max(-from, Math.min(by, last - until)); trim(from + move, until + move, by < 0 ? from + move : until + move - 1); };

  if (film) {
    const bar = $("timeline");
    const frameOf = (event) => { const box = bar.getBoundingClientRect(); return Math.round(frameAt(film.length * (event.clientX - box.left) / box.width + 0.5 * film.length / last)); };
    for (const handle of [$("from"), $("until")]) {
      const move = (frame) => (handle.id === "from" ? trim(Math.min(frame, until - 1), until, frame) : trim(from, Math.max(frame, from + 1), frame - 1));
      handle.addEventListener("pointerdown", (event) => { event.stopPropagation(); handle.setPointerCapture(event.pointerId); inside = true; });
      handle.addEventListener("pointermove", (event) => { if (handle.hasPointerCapture(event.pointerId)) move(event.clientX >= bar.getBoundingClientRect().right ? last : frameOf(event)); });
      handle.addEventListener("pointerup", () => { inside = false; handle.blur(); });
      handle.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (by) { event.preventDefault(); event.stopPropagation(); move((handle.id === "from" ? from : until) + by * (event.shiftKey ? 10 : 1)); }
      });
    }
    bar.addEventListener("pointerdown", (event) => { bar.setPointerCapture(event.pointerId); seek(frameOf(event)); });
    bar.addEventListener("pointermove", (event) => { if (bar.hasPointerCapture(event.pointerId)) seek(frameOf(event)); });
    const follow = () => {
      place($("head"), Math.min(video.currentTime, film.length));
      if (!video.paused && !inside && (video.currentTime >= at(until) - 0.01 || video.currentTime < at(from) - 0.05)) video.currentTime = at(from) + 1e-3;
      requestAnimationFrame(follow);
    };
    follow();
    const fail = async () => {
      const answer = await fetch(video.src).catch(() => null);
      $("unplayable").textContent = `This clip cannot be played. ${answer ? await answer.text() : ""}`.slice(0, 300);
      $("unplayable").hidden = false;
      video.hidden = true;
    };
    if (video.error) fail(); else video.addEventListener("error", fail);
    const begin = () => { main.dataset.ready = "yes"; video.play().catch(() => {}); ahead(); };
    if (video.readyState >= 2) begin(); else video.addEventListener("loadeddata", begin, { once: true });
  }

  // While this one is looked at, the film of the next is cut.
  function ahead() {
    fetch(`/peek?${query}${query ? "&" : ""}after=${encodeURIComponent(clip)}`).then((a) => a.json()).then((next) => next.clip_id && fetch(`/film/${encodeURIComponent(next.clip_id)}.mp4`, { headers: { Range: "bytes=0-0" } })).catch(() => {});
  }

  // -- what is told
  function told() {
    const found = { shots: [] };
    for (const field of form.elements) {
      if (!field.name) continue;
      if (field.name === "shots") { if (field.checked) found.shots.push(field.value); } else if ("list" in field.dataset) found[field.name] = field.value.split(";").map((t) => t.trim()).filter(Boolean);
      else if (field.name === "camera") found.camera = field.value || null;
      else found[field.name] = field.value.trim();
    }
    return film ? { ...found, start_frame: film.start + from, end_frame: film.start + until } : found;
  }

  function save() { sessionStorage.setItem(kept, JSON.stringify(told())); }

  function restore() {
    const draft = JSON.parse(sessionStorage.getItem(kept) || "null");
    if (!draft) return;
    for (const field of form.elements) {
      if (field.name === "shots") field.checked = draft.shots.includes(field.value);
      else if (field.name in draft) field.value = Array.isArray(draft[field.name]) ? draft[field.name].join("; ") : draft[field.name] ?? "";
    }
    if (film) { from = draft.start_frame - film.start; until = draft.end_frame - film.start; }
  }
  restore(); draw();
  form.addEventListener("input", save);
  form.addEventListener("submit", (event) => event.preventDefault());

  // -- decisions
  const decide = (action, more) => once(async () => {
    await named("/decide", `${clip} ${action}`, { clip_id: clip, action, concept: $("concept")?.value ?? "", ...more });
    sessionStorage.removeItem(kept);
    location.href = following;
  });
  const accept = () => decide("accept", { mended: told() });
  const skip = () => decide("skip", {});
  const ask = () => { $("reasons").hidden = !$("reasons").hidden; if (!$("reasons").hidden) $("reasons").scrollIntoView({ block: "nearest" }); };
  const next = () => once(async () => { await send("/leave", { clip_id: clip }); location.href = following; });
  $("accept").onclick = accept; $("skip").onclick = skip; $("reject").onclick = ask; $("undo").onclick = () => once(undo); $("next").onclick = next;
  for (const button of $("reasons").children) button.onclick = () => decide("reject", { reason: button.dataset.reason });

  const keys = {
    a: accept, s: skip, r: ask, u: () => once(undo), n: next, c: () => form.elements.caption.focus(),
    l: () => { location.href = `/list?like=${encodeURIComponent(clip)}&verdict=all`; },
    i: () => film && trim(frameAt(video.currentTime), Math.max(until, frameAt(video.currentTime) + 1)),
    o: () => film && trim(Math.min(from, frameAt(video.currentTime)), frameAt(video.currentTime) + 1),
    "[": () => film && slide(-6), "]": () => film && slide(6), 0: () => film && trim(0, last, 0),
    " ": () => film && (video.paused ? video.play() : video.pause()),
    ArrowLeft: () => film && seek(frameAt(video.currentTime) - 1), ArrowRight: () => film && seek(frameAt(video.currentTime) + 1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("textarea, input:not([type=checkbox]), select");
    if (event.key === "Escape") { document.activeElement.blur(); $("reasons").hidden = true; return; }
    if (typing) return;
    const digit = /^Digit([1-8])$/.exec(event.code);
    if (digit && event.shiftKey) {
      const box = form.querySelectorAll("input[name=shots]")[digit[1] - 1];
      if (box) { box.checked = !box.checked; save(); event.preventDefault(); }
    } else if (digit && !$("reasons").hidden) { event.preventDefault(); $("reasons").children[digit[1] - 1].click(); }
    else if (!event.shiftKey || event.key.length > 1) {
      const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (act && !(event.key === " " && event.target.matches("button, summary"))) { event.preventDefault(); act(); }
    }
  });

  // The clip is kept for its reviewer while the page is open.
  if (main.dataset.held) say(`${main.dataset.held} has this clip open.`, true);
  const hold = () => send("/keep", { clip_id: clip }).then((said) => {
    if (said.held) say(`${said.held} has this clip open.`, true);
    setTimeout(hold, 1000 * said.again_s);
  }).catch(() => setTimeout(hold, 10_000));
  setTimeout(hold, 20_000);
}

if (page === "who") $("who").addEventListener("submit", (event) => {
  event.preventDefault();
  once(async () => { location.href = (await send("/who", { name: $("name").value })).next; });
});
if (page === "clip") desk($("clip"));
if (page === "done") document.addEventListener("keydown", (event) => { if (event.key.toLowerCase() === "u" && !event.ctrlKey && !event.metaKey) once(undo); });
if (page === "concepts") for (const button of document.querySelectorAll("button.grow")) button.onclick = () => once(async () => {
  const concept = button.closest("section").dataset.concept, said = await send("/grow", { concept });
  say(said.added ? `${said.added} more clips wait in ${concept}` : `Nothing new is near ${concept}`);
  setTimeout(() => location.reload(), 900);
});
