// Corrects what Gradio does in the browser. Knows no component by its name.
// The server hands it over together with plots.js; it runs once.
() => {
  // Gradio's text boxes report an edit only when a key is pressed that writes a letter: not a paste, a cut, Backspace,
  // or text that a script puts in. Make them report every edit, each once.
  let isTyped = false;
  const noteTyping = (event) => {
    if (!event.isTrusted) return;
    isTyped = true;
    setTimeout(() => (isTyped = false)); // the input event of the key comes before that
  };
  document.addEventListener("keypress", noteTyping, true);
  document.addEventListener("input", ({ target }) => {
    if (isTyped || !target.matches("[data-testid=textbox]")) return;
    target.dispatchEvent(new KeyboardEvent("keypress", { bubbles: true }));
  });

  // A menu opens at every key, Tab too, and would stay open over the next control. Its list can scroll, so Tab would
  // lead there. Keep Tab from menus.
  const keepTabFromMenus = (event) => {
    if (event.key !== "Tab" || !event.target.matches("input[role=combobox]")) return;
    event.stopPropagation();
    for (const list of document.querySelectorAll("[role=listbox]")) list.tabIndex = -1;
  };
  document.addEventListener("keydown", keepTabFromMenus, true);

  // New HTML in a panel would close the details that the user has opened in it.
  const opened = new Map(); // id of the panel -> places of its open details
  const noteToggle = ({ target }) => {
    const panel = target.closest(".block[id]");
    if (!panel) return;
    const places = opened.get(panel.id) ?? new Set();
    const place = [...panel.querySelectorAll("details")].indexOf(target);
    if (target.open) places.add(place);
    else places.delete(place);
    opened.set(panel.id, places);
  };
  document.addEventListener("toggle", noteToggle, true);
  const reopen = () => {
    for (const [id, places] of opened) {
      const details = document.querySelectorAll(`#${id} details`);
      for (const place of places) if (details[place]) details[place].open = true;
    }
  };
  new MutationObserver(reopen).observe(document.body, { childList: true, subtree: true });

  // What changes on the page is said to those who cannot see it: messages, the verdict, and wrong values of fields.
  const SAID = ["page-message", "data-message", "start-facts", "start-message", "run-message", "job-file-message"];
  const speaker = document.body.appendChild(document.createElement("div"));
  speaker.className = "for-readers";
  speaker.setAttribute("role", "status");
  speaker.setAttribute("aria-live", "polite");
  const known = new Map();
  const speak = () => {
    const places = [...SAID.map((id) => `#${id}`), "#estimate .verdict", "#run-header .state"];
    const news = [];
    for (const place of places) {
      const text = document.querySelector(place)?.textContent.trim() ?? "";
      if (known.has(place) && text && known.get(place) !== text) news.push(text);
      known.set(place, text);
    }
    if (news.length) speaker.textContent = news.join(" ");
    for (const box of document.querySelectorAll("[id^=field-] :is(input, textarea)")) {
      if (box.closest(".wrong")) box.setAttribute("aria-invalid", "true");
      else box.removeAttribute("aria-invalid");
    }
    // Code that is only shown can be scrolled with the keys once it can be reached.
    for (const box of document.querySelectorAll(".cm-scroller[tabindex='-1']")) box.tabIndex = 0;
  };
  setInterval(speak, 500);

  // A message on a failure stays until the user goes on.
  const forget = () => document.querySelector("#page-message [role=alert]")?.remove();
  for (const event of ["pointerdown", "keydown"]) document.addEventListener(event, forget, true);

  // Light or dark: the system's choice, until the user has made one.
  const kept = localStorage.getItem("tailor-colours");
  if (kept) document.body.classList.toggle("dark", kept === "dark");
}
