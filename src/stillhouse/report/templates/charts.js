"use strict";
(() => {
  const root = document.documentElement;
  const nodes = [...document.querySelectorAll("[data-figure]")];

  // "@name" under a key that ends in "color" is the CSS variable --name of the present theme.
  const painted = (value, key, css) => {
    if (Array.isArray(value)) return value.map((item) => painted(item, key, css));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v, k, css)]));
    }
    const isColor = typeof value === "string" && value.startsWith("@") && key.endsWith("color");
    return isColor ? css.getPropertyValue(`--${value.slice(1)}`).trim() : value;
  };

  // Legends are buttons, so that the keyboard reaches them and they wrap on a narrow screen.
  const hidden = (node) => new Set([...node.parentElement.querySelectorAll(".legend [aria-pressed=false]")]
    .flatMap((button) => button.dataset.traces.split(" ").map(Number)));

  const drawOne = (node) => {
    const css = getComputedStyle(root);
    const figure = painted(JSON.parse(document.getElementById(node.dataset.figure).textContent), "", css);
    figure.layout.font.family = css.getPropertyValue("--sans").trim();
    const off = hidden(node);
    figure.data.forEach((trace, index) => { trace.visible = !off.has(index); });
    Plotly.react(node, figure.data, figure.layout, { displayModeBar: false, responsive: true });
  };
  const draw = () => nodes.forEach(drawOne);

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      drawOne(button.closest("figure").querySelector("[data-figure]"));
    });
  }

  if (["127.0.0.1", "localhost"].includes(location.hostname)) root.classList.add("is-served");
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => { root.classList.add("on-paper"); draw(); });
  addEventListener("afterprint", () => { root.classList.remove("on-paper"); draw(); });
})();
