// Elements without a framework: el("p", {class: "x"}, "text", child).

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((x) => x != null));
  return node;
}

export const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);
export const $ = (id) => document.getElementById(id);
export const points = (x) => (Math.abs(x) < 5e-4 ? "0" : (x > 0 ? "+" : "−") + Math.abs(x).toFixed(2));
export const words = (name) => name.toLowerCase().replaceAll("_", " ");
export const exactly = (x) => (x >= 0.9995 ? "100 %" : x >= 1e-3 ? `${(100 * x).toFixed(1)} %` : x > 0 ? "under 0.1 %" : "0 %");
export const percent = (x) => `${Math.round(100 * x)} %`;
