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
