// src/ and its libraries -> ../built/page.js, page.css and LICENSES.txt. The same source gives the same bytes.
import { build } from "esbuild";
import { readFileSync, writeFileSync, readdirSync } from "node:fs";

const out = new URL("../built/", import.meta.url);
for (const [entry, name] of [["src/main.js", "page.js"], ["src/style.css", "page.css"]]) {
  await build({
    entryPoints: [entry], outfile: new URL(name, out).pathname, bundle: true, minify: true, format: "iife",
    target: "es2022", charset: "ascii", legalComments: "none", absWorkingDir: new URL(".", import.meta.url).pathname,
  });
}
const used = Object.keys(JSON.parse(readFileSync(new URL("package.json", import.meta.url))).dependencies);
const licences = used.map((name) => {
  const folder = new URL(`node_modules/${name}/`, import.meta.url);
  const file = readdirSync(folder).find((f) => /^licen[cs]e/i.test(f));
  const { version } = JSON.parse(readFileSync(new URL("package.json", folder)));
  return `${name} ${version}\n\n${readFileSync(new URL(file, folder), "utf8").trim()}\n`;
});
writeFileSync(new URL("LICENSES.txt", out), licences.join(`\n${"-".repeat(72)}\n\n`));
