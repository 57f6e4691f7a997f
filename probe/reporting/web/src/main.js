// Starts the page.
document.body.textContent = "no pictures yet";
