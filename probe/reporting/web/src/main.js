// Starts the page.
import { html, render } from "htm/preact";
import { App } from "./app.js";
import { readPage } from "./data.js";

render(html`<${App} page=${readPage(document)} />`, document.body);
