// src/ and its libraries -> ../built/page.js.zlib, page.css and LICENSES.txt. The same source gives the same bytes: node's own
// zlib gives other ones on another processor, so that a library of plain JavaScript deflates.
import { build } from "esbuild";
import { readFileSync, writeFileSync, readdirSync } from "node:fs";
import { deflate } from "pako";

const out = new URL("../built/", import.meta.url);
for (const [entry, name] of [["src/main.js", "page.js.zlib"], ["src/style.css", "page.css"]]) {
  const { outputFiles } = await build({
    entryPoints: [entry], write: false, bundle: true, minify: true, format: "iife",
    target: "es2022", charset: "ascii", legalComments: "none", absWorkingDir: new URL(".", import.meta.url).pathname,
  });
  const { contents } = outputFiles[0];
  writeFileSync(new URL(name, out), name.endsWith(".zlib") ? deflate(contents, { level: 9 }) : contents);
}
const used = Object.keys(JSON.parse(readFileSync(new URL("package.json", import.meta.url))).dependencies);
const licences = used.map((name) => {
  const folder = new URL(`node_modules/${name}/`, import.meta.url);
  const file = readdirSync(folder).find((f) => /^licen[cs]e/i.test(f));
  const { version } = JSON.parse(readFileSync(new URL("package.json", folder)));
  return `${name} ${version}\n\n${readFileSync(new URL(file, folder), "utf8").trim()}\n`;
});
writeFileSync(new URL("LICENSES.txt", out), licences.join(`\n${"-".repeat(72)}\n\n`));
