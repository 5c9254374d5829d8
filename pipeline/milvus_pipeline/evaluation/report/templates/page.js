"use strict";
// Tables that can be sorted: a click on a column's heading, and another one for the other direction.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const order = (a, b) => a - b || String(a).localeCompare(String(b), undefined, { numeric: true });
      const rows = [...table.tBodies[0].rows].sort((one, other) => order(key(one), key(other)));
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    });
  });
}
// A link to a query opens it.
const reveal = () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", reveal);
reveal();
// Paper has no folds.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details.movement, details.system")) folded.open = true;
});
