// Two boxes to drag, and the relations between them under every rule set. No dependencies.
//
// One file for two places: JupyterLab loads it as an anywidget (the default export), HTML pages carry it inline and call
// `mount`. What Python knows comes from Python: the relations, their phrases, the rule sets and every constant arrive as
// `constants` (sr4g_utils/teaching/widget.py). The predicates are a second definition of sr4g_utils/relations.py;
// tests/teaching/test_widget.py holds them to it, pair by pair. Boxes are xywh in pixels, y grows downwards.

// ------------------------------------------------------------------------------------------------------- the rules

const geometry = ([x, y, w, h]) => ({ x1: x, y1: y, x2: x + w, y2: y + h, cx: x + w / 2, cy: y + h / 2, w, h });
/** The same box to a millionth of a pixel: what touches on paper touches here. */
const rounded = (value) => Math.round(value * 1e6) / 1e6;
function onPaper(g) {
  const places = ["x1", "y1", "x2", "y2", "cx", "cy"].map((name) => [name, rounded(g[name])]);
  return { ...g, ...Object.fromEntries(places) };
}

const within = (a, b) => a.x1 > b.x1 && a.y1 > b.y1 && a.x2 < b.x2 && a.y2 < b.y2;

/** Within, or out by a share of the image at most. */
function nearlyWithin(a, b, [width, height], slack) {
  const [across, down] = [slack * width, slack * height];
  return a.x1 >= b.x1 - across && a.y1 >= b.y1 - down && a.x2 <= b.x2 + across && a.y2 <= b.y2 + down;
}

const containment = (s, o) => ({ inside: within(s, o), surrounding: within(o, s) });

function overlap(s, o) {
  const overlapping =
    Math.min(s.x2, o.x2) > Math.max(s.x1, o.x1) && Math.min(s.y2, o.y2) > Math.max(s.y1, o.y1);
  return { overlapping, separated: !overlapping };
}

const scale = (s, o) => ({
  wider: s.w > o.w,
  narrower: s.w < o.w,
  taller: s.h > o.h,
  shorter: s.h < o.h,
  larger: s.w * s.h > o.w * o.h,
  smaller: s.w * s.h < o.w * o.h,
});

/** Surrounding, else inside, else one of four sectors of 90 degrees around the object's centre, in shares of the image. */
function sectors(s, o, [width, height], within) {
  const surrounding = within(o, s);
  const inside = within(s, o) && !surrounding;
  const apart = !(surrounding || inside);
  const [dx, dy] = [rounded((s.cx - o.cx) * height), rounded((s.cy - o.cy) * width)];
  const left = dx < 0 && Math.abs(dy) <= -dx;
  const above = dy < 0 && Math.abs(dx) < -dy;
  const below = dy > 0 && -dy < dx && dx <= dy;
  const right = !(left || above || below);
  return {
    "left of": apart && left,
    "right of": apart && right,
    above: apart && above,
    below: apart && below,
    inside,
    surrounding,
  };
}

const onShares = (s, o, size, within) => ({ ...sectors(s, o, size, within), ...overlap(s, o), ...scale(s, o) });

/** A direction that takes more of the offset than half its length, after a slack around the axes. */
function slackened(s, o, slack) {
  const [dx, dy] = [s.cx - o.cx, s.cy - o.cy];
  const half = 0.5 * Math.sqrt(dx * dx + dy * dy); // Math.hypot rounds whole numbers wrongly
  const across = Math.abs(dx) - slack * (s.w + o.w);
  const down = Math.abs(dy) - slack * (s.h + o.h);
  const far = across >= 1e-3 || down >= 1e-3;
  const [acrossHolds, downHolds] = [far && across > half, far && down > half];
  return {
    "left of": acrossHolds && dx < 0,
    "right of": acrossHolds && dx > 0,
    above: downHolds && dy < 0,
    below: downHolds && dy > 0,
  };
}

/** A sector around each axis, as wide on either side as `halfWidth` says, in degrees. */
function around(s, o, halfWidth) {
  const [dx, dy] = [s.cx - o.cx, s.cy - o.cy];
  const slope = Math.tan(halfWidth * (Math.PI / 180));
  const [across, down] = [slope * dx, slope * dy];
  return {
    "left of": Math.abs(dy) < -across,
    "right of": Math.abs(dy) < across,
    above: Math.abs(dx) < -down,
    below: Math.abs(dx) < down,
  };
}

/** (subject, object, image size, constants) => the relations that a rule set defines, by name. */
export const RULES = {
  visor: (s, o) => ({
    "left of": s.cx < o.cx,
    "right of": s.cx > o.cx,
    above: s.cy < o.cy,
    below: s.cy > o.cy,
    ...containment(s, o),
    ...overlap(s, o),
    ...scale(s, o),
  }),
  sg2im: (s, o, size) => onShares(onPaper(s), onPaper(o), size, within),
  sstd: (s, o, size, c) => onShares(onPaper(s), onPaper(o), size, (a, b) => nearlyWithin(a, b, size, c.SSTD_SLACK)),
  geneval: (s, o, size, c) => slackened(s, o, c.GENEVAL_SLACK),
  people: (s, o, size, c) => ({
    ...around(s, o, c.PEOPLE_HALF_WIDTH),
    ...containment(s, o),
    ...overlap(s, o),
    ...scale(s, o),
  }),
};

/** Whether each relation of `constants.relations` holds; false where the rules do not define it. */
export function judge(subject, object, rules, size, constants) {
  if (!(rules in RULES)) throw new Error(`boxes.mjs has no rule set ${rules}; it has ${Object.keys(RULES).join(", ")}`);
  const holds = RULES[rules](geometry(subject), geometry(object), size, constants);
  return constants.relations.map(({ name }) => holds[name] === true);
}

// ------------------------------------------------------------------------------------------------------ the words

/** "a dog to the left of a cat", from the two things with their articles, a relation's phrase and a template. */
export function caption([subject, object], phrase, template) {
  const parts = { subject, phrase, object };
  return template.replace(/\{(\w+)\}/g, (_, part) => parts[part]);
}

// ----------------------------------------------------------------------------------------------------- the border

/**
 * Line segments [x1, y1, x2, y2] along which label(x, y) changes: a grid, each crossing found by bisection.
 * What is thinner than the grid's step, in pixels, may be missed.
 */
export function border(label, [width, height], step = 6) {
  const [columns, rows] = [Math.ceil(width / step), Math.ceil(height / step)];
  const grid = Array.from({ length: (columns + 1) * (rows + 1) }, (_, i) =>
    label((i % (columns + 1)) * step, Math.floor(i / (columns + 1)) * step),
  );
  const crossing = (i, j, k, l) => {
    const [a, b] = [grid[j * (columns + 1) + i], grid[l * (columns + 1) + k]];
    if (a === b) return null;
    let [low, high] = [0, 1]; // of the way from the first corner to the second
    for (let n = 0; n < 8; n++) {
      const middle = (low + high) / 2;
      if (label((i + middle * (k - i)) * step, (j + middle * (l - j)) * step) === a) low = middle;
      else high = middle;
    }
    return [(i + low * (k - i)) * step, (j + low * (l - j)) * step];
  };
  const segments = [];
  for (let j = 0; j < rows; j++)
    for (let i = 0; i < columns; i++) {
      const top = crossing(i, j, i + 1, j), bottom = crossing(i, j + 1, i + 1, j + 1);
      const left = crossing(i, j, i, j + 1), right = crossing(i + 1, j, i + 1, j + 1);
      const found = [top, bottom, left, right].filter(Boolean);
      if (found.length === 2) segments.push(found.flat());
      else if (found.length === 4) segments.push([top, bottom].flat(), [left, right].flat());
      else if (found.length === 3) {
        const middle = [0, 1].map((axis) => found.reduce((sum, point) => sum + point[axis], 0) / 3);
        for (const point of found) segments.push([point, middle].flat());
      }
    }
  return segments;
}

// ----------------------------------------------------------------------------------------------------- the picture

const SMALLEST = 15; // pixels, of a box's sides
const STEP = 5; // pixels, of an arrow key
const ARROWS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
const clamp = (value, low, high) => Math.round(Math.min(Math.max(value, low), high));

/** The box moved or resized by (dx, dy), kept within the picture and on whole pixels, so that ties can be met. */
export function changed([x, y, w, h], [dx, dy], resize, [width, height]) {
  return resize
    ? [x, y, clamp(w + dx, SMALLEST, width - x), clamp(h + dy, SMALLEST, height - y)]
    : [clamp(x + dx, 0, width - w), clamp(y + dy, 0, height - h), w, h];
}

const STYLE = `
.sr4g-boxes { max-width: 44rem; font: 1rem/1.4 system-ui, sans-serif; color: inherit; }
.sr4g-boxes svg { display: block; width: calc(100% - 12px); height: auto; margin: .5rem 12px 1rem 0; overflow: visible;
  user-select: none; }
.sr4g-boxes .ground { fill: currentColor; fill-opacity: .06; }
.sr4g-boxes .border { fill: none; stroke: currentColor; stroke-width: 2; stroke-opacity: .75; pointer-events: none; }
.sr4g-boxes .topological { stroke-dasharray: 5 5; stroke-opacity: .55; }
.sr4g-boxes .picture ~ .border { stroke: #fff; stroke-opacity: 1; filter: drop-shadow(0 0 1px #000); }
.sr4g-boxes .box { cursor: move; outline: none; }
.sr4g-boxes .box rect { fill-opacity: .18; stroke-width: 4; }
.sr4g-boxes .box:focus rect { stroke-width: 8; }
.sr4g-boxes .subject rect, .sr4g-boxes .subject .dot { fill: #0173b2; stroke: #0173b2; }
.sr4g-boxes .object rect, .sr4g-boxes .object .dot { fill: #de8f05; stroke: #de8f05; }
.sr4g-boxes .handle { fill: #fff; stroke: #222; stroke-width: 2; cursor: nwse-resize; }
.sr4g-boxes .reach { fill: transparent; cursor: nwse-resize; }
.sr4g-boxes text { font: 600 17px system-ui, sans-serif; fill: #fff; stroke: #000; stroke-width: 3px; paint-order: stroke;
  stroke-linejoin: round; pointer-events: none; }
.sr4g-boxes ul { display: grid; grid-template-columns: 1fr 1fr; gap: .25rem; padding: 0; margin: .5rem 0;
  list-style: none; }
@media (min-width: 40rem) { .sr4g-boxes ul { grid-template-columns: repeat(4, 1fr); } }
.sr4g-boxes li { margin: 0; padding: .15rem .5rem; border: 1px solid currentColor; border-radius: 1rem; opacity: .6; }
.sr4g-boxes li.holds { background: #0173b2; border-color: #0173b2; color: #fff; opacity: 1; font-weight: 600; }
.sr4g-boxes li.undefined { border-style: dotted; opacity: .35; }
.sr4g-boxes output { display: block; min-height: 7em; white-space: pre-line; }
.sr4g-boxes small { display: block; opacity: .8; }
.sr4g-boxes select { font: inherit; }
`;

function made(parent, name, attributes = {}, text = "") {
  const svg = name === "svg" || parent instanceof SVGElement;
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return parent.appendChild(element);
}

/** A box to drag, to resize at its lower right corner, and to move with the keyboard; returns how to draw it anew. */
function draggable(svg, role, state, change) {
  const group = made(svg, "g", { class: `box ${role}`, tabindex: 0, role: "application" });
  group.setAttribute("aria-roledescription", "movable box");
  const frame = made(group, "rect"), dot = made(group, "circle", { class: "dot", r: 5 });
  const label = made(group, "text", {}, `${state[role]} (${role})`);
  const handle = made(group, "circle", { class: "handle", r: 8 }), reach = made(group, "circle", { class: "reach", r: 24 });
  let grip = null; // while dragging: the box and the pointer at the start, and whether it is resized
  const at = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [point.x, point.y];
  };
  const apply = (box, by, resize) => change({ [`${role}_box`]: changed(box, by, resize, state.size) });
  group.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false }); // do not scroll the page
  group.addEventListener("pointerdown", (event) => {
    grip = { box: state[`${role}_box`], from: at(event), resize: event.target === reach };
    group.setPointerCapture(event.pointerId);
    group.focus({ preventScroll: true });
    event.preventDefault();
  });
  group.addEventListener("pointermove", (event) => {
    if (!grip) return;
    const [x, y] = at(event);
    apply(grip.box, [x - grip.from[0], y - grip.from[1]], grip.resize);
  });
  for (const end of ["pointerup", "pointercancel"]) group.addEventListener(end, () => (grip = null));
  group.addEventListener("keydown", (event) => {
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    event.stopPropagation(); // arrow keys also leave a notebook's cell
    apply(state[`${role}_box`], ARROWS[event.key], event.shiftKey);
  });
  const place = (element, values) => Object.entries(values).forEach(([key, value]) => element.setAttribute(key, value));
  return () => {
    const [x, y, w, h] = state[`${role}_box`];
    place(frame, { x, y, width: w, height: h });
    place(dot, { cx: x + w / 2, cy: y + h / 2 });
    place(label, { x: x + 5, y: y > 24 ? y - 7 : y + 19 });
    for (const circle of [handle, reach]) place(circle, { cx: x + w, cy: y + h });
    const where = `${x} from the left, ${y} from the top, ${w} wide, ${h} high`;
    place(group, { "aria-label": `${role}: ${state[role]}, ${where}. Arrow keys move it, with shift they resize it.` });
  };
}

/** The border of a family's verdicts for the subject's centre, as a path; its size and the object stay. */
function outline({ subject_box, object_box, rules, size, constants }, family) {
  const [, , w, h] = subject_box;
  const wanted = constants.relations.map((relation) => relation.family === family);
  const label = (cx, cy) =>
    judge([cx - w / 2, cy - h / 2, w, h], object_box, rules, size, constants)
      .reduce((bits, holds, i) => (wanted[i] && holds ? bits | (1 << i) : bits), 0);
  return border(label, size).map((s) => `M${s.slice(0, 2)}L${s.slice(2)}`).join("");
}

/** The picture with its border lines, on which the boxes are put. */
function canvas(root, { size, picture }) {
  const svg = made(root, "svg", { viewBox: `0 0 ${size.join(" ")}`, role: "group" });
  svg.setAttribute("aria-label", `A picture of ${size.join(" by ")} pixels with two boxes to move`);
  const whole = { width: size[0], height: size[1] };
  made(svg, "rect", { class: "ground", ...whole });
  if (picture) made(svg, "image", { class: "picture", href: picture, ...whole });
  const lines = ["projective", "topological"].map((family) => [family, made(svg, "path", { class: `border ${family}` })]);
  return { svg, lines };
}

/** The 14 relations and the captions; returns how to write them anew. */
function verdicts(root, state) {
  const { constants, size } = state;
  const list = made(root, "ul", { "aria-label": "The 14 relations" });
  const chips = constants.relations.map(({ name }) => made(list, "li", { "data-relation": name }));
  const output = made(root, "output", { "aria-live": "polite" });
  return () => {
    const holds = judge(state.subject_box, state.object_box, state.rules, size, constants);
    constants.relations.forEach(({ name }, i) => {
      const unknown = !constants.rules[state.rules].includes(name);
      chips[i].className = holds[i] ? "holds" : unknown ? "undefined" : "";
      chips[i].textContent = `${holds[i] ? "✓ " : ""}${name}${unknown ? " –" : ""}`;
      chips[i].title = unknown ? `${state.rules} does not define it` : holds[i] ? "holds" : "does not hold";
    });
    const found = constants.relations.filter((_, i) => holds[i]);
    const written = found.map(({ phrase }) => caption(state.things, phrase, constants.template));
    output.textContent = written.join("\n") || "no caption: no relation holds";
  };
}

/**
 * The two boxes in `element`. `options`: subject and object (names), things (both with their articles), subject_box and
 * object_box (xywh), size (width and height of the picture), rules, picture (an address, or "") and constants. `told`
 * hears of every change, by the option's name. Returns a function that takes changes from outside.
 */
export function mount(element, options, told = () => {}) {
  const state = { ...options };
  const root = made(element, "div", { class: "sr4g-boxes" });
  made(root, "style", {}, STYLE);
  const select = made(made(root, "label", {}, "Rules: "), "select");
  for (const name of Object.keys(state.constants.rules).filter((each) => each in RULES)) made(select, "option", {}, name);
  const { svg, lines } = canvas(root, state);
  const redraw = ["object", "subject"].map((role) => draggable(svg, role, state, change));
  const hint = "Drag a box, or its corner to resize it. Where the subject's centre crosses a line, a verdict changes: ";
  made(root, "small", {}, `${hint}solid for left, right, above and below, dashed for containment and overlap.`);
  redraw.push(verdicts(root, state));

  let drawn = ""; // for what the border was last drawn: it does not depend on where the subject is
  function draw() {
    select.value = state.rules;
    const wanted = JSON.stringify([state.rules, state.object_box, state.subject_box.slice(2)]);
    if (wanted !== drawn) for (const [family, path] of lines) path.setAttribute("d", outline(state, family));
    drawn = wanted;
    redraw.forEach((each) => each());
  }
  function take(changes) {
    Object.assign(state, changes);
    draw();
  }
  function change(changes) {
    take(changes);
    told(changes);
  }
  select.addEventListener("change", () => change({ rules: select.value }));
  draw();
  return take;
}

// -------------------------------------------------------------------------------------------------- in JupyterLab

const SHARED = ["subject_box", "object_box", "rules"]; // what both sides may change
const GIVEN = ["subject", "object", "things", "size", "picture", "constants"];

function render({ model, el }) {
  const options = Object.fromEntries([...SHARED, ...GIVEN].map((name) => [name, model.get(name)]));
  const take = mount(el, options, (changes) => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  });
  for (const name of SHARED) model.on(`change:${name}`, () => take({ [name]: model.get(name) }));
}

export default { render };
