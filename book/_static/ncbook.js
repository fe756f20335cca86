// Code that unfolds is labelled "Toggle hidden content" for all; its visible words say more.
document.addEventListener("DOMContentLoaded", () => {
  for (const fold of document.querySelectorAll("summary[aria-label]")) fold.removeAttribute("aria-label");
});

// A wide table scrolls inside its frame; the keyboard must be able to reach it.
document.addEventListener("DOMContentLoaded", () => {
  for (const frame of document.querySelectorAll(".pst-scrollable-table-container")) {
    frame.setAttribute("tabindex", "0");
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", "Table, may scroll sideways");
  }
});

// The bibliography is printed as a list whose anchors are no list items; read it as plain text instead.
document.addEventListener("DOMContentLoaded", () => {
  for (const list of document.querySelectorAll(".citation-list[role=list]")) {
    list.removeAttribute("role");
    for (const item of list.querySelectorAll("[role=doc-biblioentry]")) item.removeAttribute("role");
  }
});

// A formula in a sentence that is wider than its column gets a line of its own and scrolls there. Looked at
// again whenever the article changes its size: after typesetting, after a turn of the phone, when a fold opens.
document.addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector("article");
  if (!article) return;
  const setWideFormulas = () => {
    const formulas = [...article.querySelectorAll('mjx-container:not([display="true"])')];
    for (const formula of formulas) formula.classList.remove("wide-formula");
    const wide = formulas.filter((formula) => {
      const column = formula.closest("p, li, dd, td, th, div");
      const drawn = formula.firstElementChild;
      return drawn && drawn.getBoundingClientRect().width > column.clientWidth + 1;
    });
    for (const formula of wide) formula.classList.add("wide-formula");
  };
  let waiting = 0;
  new ResizeObserver(() => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(setWideFormulas);
  }).observe(article);
});
