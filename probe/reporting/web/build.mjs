// src/ and its libraries -> ../built/page.js, page.css and LICENSES.txt. The same source gives the same bytes.
import { build } from "esbuild";
import { readFileSync, writeFileSync, readdirSync } from "node:fs";
import { minify } from "terser";

// the indentation and the quotes of templates are no part of the page (those that pen.js writes are of a file)
const narrow = {
  name: "narrow",
  setup({ onLoad }) {
    onLoad({ filter: /\/web\/src\/\w+\.js$/ }, ({ path }) => {
      const text = readFileSync(path, "utf8").replace(/\n +/g, "\n").replace(/>\n(?=<|\$\{)/g, ">").replace(/\}\n(?=<)/g, "}");
      return { contents: path.endsWith("/pen.js") ? text : text.replace(/ ([a-z-]+)="([\w-]+)"/g, " $1=$2") };
    });
  },
};
const out = new URL("../built/", import.meta.url);
for (const [entry, name] of [["src/main.js", "page.js"], ["src/style.css", "page.css"]]) {
  const { outputFiles } = await build({
    entryPoints: [entry], write: false, bundle: true, minify: true, format: "iife",
    target: "es2022", charset: "ascii", legalComments: "none", plugins: [narrow], absWorkingDir: new URL(".", import.meta.url).pathname,
  });
  const { text } = outputFiles[0];
  const shorter = { compress: { passes: 3, unsafe_arrows: true }, ecma: 2020, format: { ascii_only: true } };
  writeFileSync(new URL(name, out), name === "page.js" ? `${(await minify(text, shorter)).code}\n` : text);
}
// a licence; of the Apache License, which comes with this project too, whose work it is
function notice(text) {
  if (!text.trimStart().startsWith("Apache License")) return text;
  const [, holder] = text.match(/\n +(Copyright \d{4} [^\n]+)\n/);
  return `${holder}\nLicensed under the Apache License, Version 2.0, which is the LICENSE of probe too.`;
}

const used = Object.keys(JSON.parse(readFileSync(new URL("package.json", import.meta.url))).dependencies);
const licences = used.map((name) => {
  const folder = new URL(`node_modules/${name}/`, import.meta.url);
  const file = readdirSync(folder).find((f) => /^licen[cs]e/i.test(f));
  const { version } = JSON.parse(readFileSync(new URL("package.json", folder)));
  return `${name} ${version}\n\n${notice(readFileSync(new URL(file, folder), "utf8")).trim()}\n`;
});
writeFileSync(new URL("LICENSES.txt", out), licences.join(`\n${"-".repeat(72)}\n\n`));
