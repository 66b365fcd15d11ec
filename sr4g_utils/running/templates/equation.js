// Without a font for equations an index is set on the line of its letter, and x_t reads as a product
const probe = document.createElement("p");
probe.style.fontSize = "100px";
probe.innerHTML = "<math><msub><mi>x</mi><mi>x</mi></msub></math>";
document.body.append(probe);
const [letter, index] = [...probe.querySelectorAll("mi")].map((each) => each.getBoundingClientRect().bottom);
probe.remove();
document.body.classList.toggle("no-math-font", index - letter < 15);
