// What the page does by itself in the browser. Knows Gradio's ways, and no component by its name.
// The server hands it over with plots.js; it runs once.
() => {
  // Gradio's text boxes tell of an edit only when a key is pressed that writes a letter: not of a paste, a cut,
  // Backspace, or what a script puts in. They are made to tell of every edit, and of each once.
  let isTyped = false;
  const noteTyping = (event) => {
    if (!event.isTrusted) return;
    isTyped = true;
    setTimeout(() => (isTyped = false)); // what the key writes comes before that
  };
  document.addEventListener("keypress", noteTyping, true);
  document.addEventListener("input", ({ target }) => {
    if (isTyped || !target.matches("[data-testid=textbox]")) return;
    target.dispatchEvent(new KeyboardEvent("keypress", { bubbles: true }));
  });

  // A menu takes every key for one that opens it, Tab too, and would stay open over what the person has gone on to;
  // and its list, which scrolls, would be where Tab leads.
  const keepTabFromMenus = (event) => {
    if (event.key !== "Tab" || !event.target.matches("input[role=combobox]")) return;
    event.stopPropagation();
    for (const list of document.querySelectorAll("[role=listbox]")) list.tabIndex = -1;
  };
  document.addEventListener("keydown", keepTabFromMenus, true);

  // Light or dark: the system's choice, until a person makes one.
  const kept = localStorage.getItem("tailor-colours");
  if (kept) document.body.classList.toggle("dark", kept === "dark");
}
