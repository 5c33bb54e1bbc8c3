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
// A visitor whose token has ended is led to the door, and is not left with a page that no longer changes.
const leave = async () => {
  const answer = await fetch("/docs", { redirect: "manual" }).catch(() => null);
  if (answer?.type === "opaqueredirect") location.reload();
};
const listening = setInterval(() => {
  if (!window.socket) return;
  clearInterval(listening);
  for (const event of ["disconnect", "connect_error"]) window.socket.on(event, leave);
}, 200);
