// Builds dist/, which the server embeds (see build.rs). The files are stored compressed only: every browser takes gzip,
// over plain http too (where brotli is not offered), and the server unpacks for the rare client that does not.
import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { defineConfig } from "vite";

const SERVER = "http://127.0.0.1:8080";

const compressFiles = {
  name: "compress-files",
  apply: "build",
  async writeBundle({ dir }) {
    for (const entry of await readdir(dir, { recursive: true, withFileTypes: true })) {
      if (!entry.isFile() || entry.name.startsWith(".")) continue;
      const path = join(entry.parentPath, entry.name);
      await writeFile(`${path}.gz`, gzipSync(await readFile(path), { level: 9 }));
      await rm(path);
    }
  },
};

// GraphiQL asks for the editor once its own code has run; the browser can fetch both at the same time.
const preloadEditor = {
  name: "preload-editor",
  apply: "build",
  transformIndexHtml: {
    order: "post",
    handler: (_html, { bundle }) =>
      Object.values(bundle)
        .filter(({ type, name }) => type === "chunk" && name === "monaco-editor")
        .map(({ fileName }) => ({ tag: "link", attrs: { rel: "modulepreload", crossorigin: true, href: `/${fileName}` } })),
  },
};

export default defineConfig({
  plugins: [preloadEditor, compressFiles],
  build: {
    // A file inside a data: URL would need a wider Content-Security-Policy.
    assetsInlineLimit: 0,
    // Monaco is one piece of this size.
    chunkSizeWarningLimit: 3000,
    reportCompressedSize: false,
    // Their licenses ask to be passed on.
    license: { fileName: "licenses.txt" },
    // GraphiQL's packages carry "use client" for frameworks that render on a server.
    rolldownOptions: { checks: { moduleLevelDirective: false } },
  },
  // For `npm run dev` beside a running server, which takes no other origin than its own.
  server: { proxy: { "/graphql": { target: SERVER, ws: true, changeOrigin: true, headers: { origin: SERVER } } } },
});
