// Tells the page which run of the list was chosen or added to the comparison, by hidden text boxes: a list of plain HTML
// stays fast with thousands of runs. `element` is the list, which gets new HTML at every change.
const say = (id, value) => {
  const box = document.querySelector(`#${id} textarea, #${id} input`);
  if (!box) return;
  box.value = value;
  box.dispatchEvent(new Event("input", { bubbles: true }));
};
element.closest("body").addEventListener("click", ({ target }) => {
  const unreadable = target.closest("#unreadable [data-delete]");
  if (unreadable) say("unreadable-id", unreadable.dataset.delete);
  const published = target.closest("#checkpoints [data-publish]");
  if (published) say("published-step", published.dataset.publish);
});
const runAt = (event) => event.target.closest("[data-run]")?.dataset.run;
let pressed; // the list may change between press and release; the click then hits no run
element.addEventListener("pointerdown", (event) => (pressed = runAt(event)));
element.addEventListener("click", (event) => {
  const run = runAt(event) ?? (event.target.closest("[data-compare]") ? undefined : pressed);
  pressed = undefined;
  if (!run) return;
  say("run-id", run);
  const isAbove = window.matchMedia("(max-width: 899px)").matches; // the list is above the run, see ui/style.css
  if (isAbove) document.querySelector("#run-header")?.scrollIntoView({ behavior: "smooth" });
});
element.addEventListener("change", () => {
  const boxes = [...element.querySelectorAll("[data-compare]:checked")];
  say("compared", boxes.map((box) => box.dataset.compare).join(" "));
});
