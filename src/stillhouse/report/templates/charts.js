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

  const draw = () => {
    const css = getComputedStyle(root);
    for (const node of nodes) {
      const figure = painted(JSON.parse(document.getElementById(node.dataset.figure).textContent), "", css);
      figure.layout.font.family = css.getPropertyValue("--sans").trim();
      Plotly.react(node, figure.data, figure.layout, { displayModeBar: false, responsive: true });
    }
  };

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => { root.classList.add("on-paper"); draw(); });
  addEventListener("afterprint", () => { root.classList.remove("on-paper"); draw(); });
})();
