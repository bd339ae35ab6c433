"use strict";
// Everything that comes from a file or a server enters a page as text, never as markup.
const byId = (id) => document.getElementById(id);

function pairs(list, rows) {
  list.replaceChildren(...rows.flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
}
