// A picture opens in a dialog as large as it is and at least as wide as the window; without scripts it stays as it is
for (const picture of document.querySelectorAll(".jp-RenderedImage img, .cell_output img")) {
  const enlarge = (event) => {
    event.preventDefault();  // else Enter presses the new button, too
    const dialog = document.createElement("dialog"), button = document.createElement("button");
    dialog.className = "picture";
    button.textContent = "Close";
    const large = new Image();
    large.src = picture.src;
    large.alt = picture.alt;
    dialog.append(button, large);
    dialog.onclick = () => dialog.close();
    dialog.onclose = () => dialog.remove();
    document.body.append(dialog);
    dialog.showModal();
  };
  picture.tabIndex = 0;
  picture.setAttribute("role", "button");
  picture.dataset.large = "";
  picture.title = "Enlarge";
  const hint = document.createElement("span");
  hint.className = "tap";
  hint.textContent = "Tap the picture to enlarge it";
  picture.after(hint);  // not after what the cell prints below it
  picture.onclick = enlarge;
  picture.onkeydown = (event) => event.key === "Enter" && enlarge(event);
}
