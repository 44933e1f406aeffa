// Tells the page which run of the list was pressed, or put into the comparison: by hidden text boxes, because a list of
// plain HTML stays quick with thousands of runs. `element` is the list, which Gradio fills anew on every change.
const say = (id, value) => {
  const box = document.querySelector(`#${id} textarea, #${id} input`);
  if (!box) return;
  box.value = value;
  box.dispatchEvent(new Event("input", { bubbles: true }));
};
const runAt = (event) => event.target.closest("[data-run]")?.dataset.run;
let pressed; // the list may be filled anew between the press and the release, and then the click hits no run
element.addEventListener("pointerdown", (event) => (pressed = runAt(event)));
element.addEventListener("click", (event) => {
  const run = runAt(event) ?? (event.target.closest("[data-compare]") ? undefined : pressed);
  pressed = undefined;
  if (!run) return;
  say("run-id", run);
  const isAbove = window.matchMedia("(max-width: 899px)").matches; // the list, of the run: see ui/style.css
  if (isAbove) document.querySelector("#run-header")?.scrollIntoView({ behavior: "smooth" });
});
element.addEventListener("change", () => {
  const boxes = [...element.querySelectorAll("[data-compare]:checked")];
  say("compared", boxes.map((box) => box.dataset.compare).join(" "));
});
