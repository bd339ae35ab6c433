"use strict";
document.getElementById("close").addEventListener("click", (event) => {
  if (!window.opener) return; // no browser closes what nobody opened: the link leads to the cells
  event.preventDefault();
  window.close();
});
// What draws the description comes last, since it is large.
document.addEventListener("DOMContentLoaded", () =>
  SwaggerUIBundle({ url: "docs.json", dom_id: "#swagger-ui", validatorUrl: null }));
