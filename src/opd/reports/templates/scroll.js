(() => {  // What scrolls can be reached by keyboard.
  const reach = () => {
    for (const node of document.querySelectorAll(".scroll, .pair > div, pre.code, .tokens")) {
      const scrolls = node.scrollWidth > node.clientWidth + 1 || node.scrollHeight > node.clientHeight + 1;
      if (!scrolls || node.querySelector("[tabindex='0'], a, button, summary")) continue;
      node.tabIndex = 0;
      if (!node.getAttribute("role")) {
        node.setAttribute("role", "group");
        node.setAttribute("aria-label", node.closest("section")?.querySelector("h2, h3")?.textContent ?? "table");
      }
    }
  };
  reach();
  addEventListener("resize", reach);
  document.addEventListener("toggle", reach, true);
})();
