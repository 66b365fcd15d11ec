// A page that was taken out of its run has no neighbours; the contents close when a section is chosen
const ways = document.querySelector("nav.ways"), contents = ways.querySelector("details");
const run = ways.querySelector(".run"), folds = [...document.querySelectorAll("details.code")];
if (run) run.hidden = location.pathname.split("/").at(-2) !== "notebooks";
contents.querySelector("ol").onclick = () => (contents.open = false);
ways.querySelector("button").onclick = (event) => {
  const open = !folds.some((fold) => fold.open);
  for (const fold of folds) fold.open = open;
  event.target.textContent = open ? "Fold code" : "Unfold code";
};
