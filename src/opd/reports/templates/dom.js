"use strict";
// Data of the page: JSON, deflated, in base64.
const unpack = async (source) => {
  const bytes = Uint8Array.from(atob(source.textContent), (c) => c.charCodeAt(0));
  source.remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
};
const make = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
