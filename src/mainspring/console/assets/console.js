// A drawing that is wider than its place starts at its middle, and stays where it was scrolled to when it is redrawn.
const scrolled = new Map();
new MutationObserver(() => {
  for (const graph of document.querySelectorAll(".graph:not([data-placed])")) {
    const name = graph.firstElementChild?.getAttribute("aria-label");
    graph.dataset.placed = "";
    graph.scrollLeft = scrolled.get(name) ?? (graph.scrollWidth - graph.clientWidth) / 2;
    graph.addEventListener("scroll", () => scrolled.set(name, graph.scrollLeft), { passive: true });
  }
}).observe(document.documentElement, { childList: true, subtree: true });
