// The packed tables of a page (../README.md has the format): decoded when they are first asked for, and kept.

const ARRAYS = {
  f8: Float64Array, f4: Float32Array, i4: Int32Array, i2: Int16Array, i1: Int8Array, u4: Uint32Array, u2: Uint16Array,
  u1: Uint8Array,
};

// The page in a document: what its JSON says, and the frames of its panels.
export function readPage(document) {
  const about = JSON.parse(document.getElementById("page").textContent);
  const kept = new Map();
  const frame = (panel) => {
    const i = panel.frame;
    if (!kept.has(i)) kept.set(i, unpack(about.frames[i], document.getElementById(`frame-${i}`).textContent));
    return kept.get(i);
  };
  return {
    ...about,
    frame,
    sequence: (run, prompt) => about.sequences.find((one) => one.run === run && one.prompt === prompt) ?? null,
    prompts: (run) => about.sequences.filter((one) => one.run === run).map(({ prompt, title }) => ({ prompt, title })),
  };
}

export async function unpack(description, base64) {
  const packed = bytesOf(base64.trim());
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Frame(description, new Uint8Array(await new Response(stream).arrayBuffer()));
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Reads columns one after another out of the inflated bytes.
class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  take(size) {
    this.at += size;
    return this.bytes.subarray(this.at - size, this.at);
  }

  array(of, rows) {
    const size = ARRAYS[of].BYTES_PER_ELEMENT;
    const lying = this.take(rows * size);
    if (size === 1) return new ARRAYS[of](lying.buffer, lying.byteOffset, rows);
    const standing = new Uint8Array(rows * size);
    for (let k = 0; k < size; k++) for (let i = 0; i < rows; i++) standing[i * size + k] = lying[k * rows + i];
    return new ARRAYS[of](standing.buffer);
  }

  column(about, rows) {
    if (about.type === "number") return new NumberColumn(about, this.array(about.of, rows));
    if (about.type === "bool") return new BoolColumn(this.array("u1", rows));
    if (about.type === "text") {
      const codes = this.array(about.of, rows);
      return new TextColumn(codes, JSON.parse(new TextDecoder().decode(this.take(about.words))));
    }
    const lengths = this.array("u4", rows);
    const starts = new Uint32Array(rows + 1);
    for (let i = 0; i < rows; i++) starts[i + 1] = starts[i] + Math.max(lengths[i] - 1, 0);
    return new ListColumn(lengths, starts, this.column(about.items, starts[rows]));
  }
}

class NumberColumn {
  constructor(about, stored) {
    this.about = about;
    this.stored = stored;
  }

  get(i) {
    const { about, stored } = this;
    const found = stored[i];
    if (found === about.null || Number.isNaN(found)) return null;
    return about.step === undefined ? found : about.base + about.step * found;
  }

  get whole() {
    return this.about.null === undefined && this.about.step === undefined; // no item has to be looked at
  }

  range(start, end) {
    if (this.whole) return this.stored.subarray(start, end);
    const found = new Float64Array(end - start);
    for (let i = start; i < end; i++) found[i - start] = this.get(i) ?? NaN;
    return found;
  }

  text(i) {
    const found = this.get(i);
    if (found === null) return "";
    if (this.about.integer) return String(found);
    if (Math.abs(found) === Infinity) return found > 0 ? "inf" : "-inf";
    const single = this.about.of === "f4" || this.about.step !== undefined;
    const digits = single ? singleDigits(found) : Object.is(found, -0) ? "-0" : String(found);
    return /[.e]/.test(digits) ? digits : `${digits}.0`;
  }

  json(i) {
    const found = this.get(i);
    return found === null || Math.abs(found) === Infinity ? "null" : this.text(i);
  }
}

class BoolColumn {
  constructor(codes) {
    this.codes = codes;
  }

  get(i) {
    return this.codes[i] === 2 ? null : this.codes[i] === 1;
  }

  range(start, end) {
    return Array.from(this.codes.subarray(start, end), (code) => (code === 2 ? null : code === 1));
  }

  text(i) {
    return ["False", "True", ""][this.codes[i]];
  }

  json(i) {
    return ["false", "true", "null"][this.codes[i]];
  }
}

class TextColumn {
  constructor(codes, words) {
    this.codes = codes;
    this.words = words;
  }

  get(i) {
    return this.codes[i] ? this.words[this.codes[i] - 1] : null;
  }

  range(start, end) {
    return Array.from(this.codes.subarray(start, end), (code) => (code ? this.words[code - 1] : null));
  }

  text(i) {
    const found = this.get(i);
    if (found === null) return "";
    return found === "" || /[",\r\n]/.test(found) ? `"${found.replaceAll('"', '""')}"` : found;
  }

  json(i) {
    return JSON.stringify(this.get(i));
  }
}

class ListColumn {
  constructor(lengths, starts, items) {
    this.lengths = lengths;
    this.starts = starts;
    this.items = items;
  }

  get(i) {
    return this.lengths[i] ? this.items.range(this.starts[i], this.starts[i + 1]) : null;
  }

  range(start, end) {
    return Array.from({ length: end - start }, (_, i) => this.get(start + i));
  }

  text(i) {
    if (!this.lengths[i]) return "";
    const found = this.json(i);
    return /[",]/.test(found) ? `"${found.replaceAll('"', '""')}"` : found;
  }

  json(i) {
    if (!this.lengths[i]) return "null";
    const items = [];
    for (let k = this.starts[i]; k < this.starts[i + 1]; k++) items.push(this.items.json(k));
    return `[${items.join(", ")}]`;
  }
}

// The fewest digits from which a float32 reads back.
function singleDigits(value) {
  if (Object.is(value, -0)) return "-0";
  for (let digits = 6; digits < 9; digits++) {
    const found = Number(value.toPrecision(digits));
    if (Math.fround(found) === Math.fround(value)) return String(found);
  }
  return String(Number(value.toPrecision(9)));
}

export class Frame {
  constructor(description, bytes) {
    const reader = new Reader(bytes);
    this.rows = description.rows;
    this.columns = description.columns.map((about) => about.name);
    this.types = new Map(description.columns.map((about) => [about.name, about.type]));
    const columns = [];
    for (const about of description.columns) {
      const same = columns[about.as];
      if (same === undefined) columns.push(reader.column(about, this.rows));
      else columns.push(about.type === "number" ? new NumberColumn(about, same.stored) : same);
    }
    this.found = new Map(this.columns.map((name, i) => [name, columns[i]]));
    this.kept = new Map();
  }

  has(name) {
    return this.found.has(name);
  }

  type(name) {
    return this.types.get(name) ?? null;
  }

  column(name) {
    const column = this.found.get(name);
    if (!column) throw new Error(`the frame has no column ${name}: it has ${this.columns.join(", ")}`);
    return column;
  }

  get(name, i) {
    return this.column(name).get(i);
  }

  // Numbers: a typed array, NaN where there is none. Others: an array with null.
  values(name) {
    return this.cached(`values ${name}`, () => this.column(name).range(0, this.rows));
  }

  distinct(name) {
    return this.cached(`distinct ${name}`, () => {
      const column = this.column(name);
      const seen = new Set();
      for (let i = 0; i < this.rows; i++) seen.add(column.get(i));
      seen.delete(null);
      const found = [...seen];
      return this.type(name) === "number" ? found.sort((a, b) => a - b) : found;
    });
  }

  // Rows where every column has its value (null: where there is none).
  indices(where = {}) {
    const wanted = Object.entries(where).map(([name, value]) => [this.column(name), value ?? null]);
    const found = [];
    for (let i = 0; i < this.rows; i++) {
      if (wanted.every(([column, value]) => column.get(i) === value)) found.push(i);
    }
    return Int32Array.from(found);
  }

  csv(panel, indices = null) {
    const columns = this.columns.map((name) => this.column(name));
    const lines = [this.columns.map(quoted).join(",")];
    const line = (i) => lines.push(columns.map((column) => column.text(i)).join(","));
    if (indices) indices.forEach(line);
    else for (let i = 0; i < this.rows; i++) line(i);
    return `${lines.join("\n")}\n`;
  }

  cached(key, make) {
    if (!this.kept.has(key)) this.kept.set(key, make());
    return this.kept.get(key);
  }
}

const quoted = (name) => (/[",\r\n]/.test(name) ? `"${name.replaceAll('"', '""')}"` : name);
