"use strict";
SwaggerUIBundle({ url: "docs.json", dom_id: "#swagger-ui", validatorUrl: null });
document.getElementById("close").addEventListener("click", (event) => {
  window.close();
  if (window.closed) event.preventDefault(); // where a browser keeps the window, the link leads to the cells
});
