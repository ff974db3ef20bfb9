#!/usr/bin/env node
// The npm compiler behind the two options of native solc that forge asks for: --version and --standard-json.
"use strict";
const path = require("node:path");
const solc = require(path.join(__dirname, "node_modules", "solc"));

if (process.argv.includes("--version")) {
  const version = solc.version().replace("Emscripten.clang", "Linux.g++");
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${version}`);
} else if (process.argv.includes("--standard-json")) {
  const chunks = [];
  process.stdin.on("data", (chunk) => chunks.push(chunk));
  process.stdin.on("end", () => process.stdout.write(solc.compile(Buffer.concat(chunks).toString("utf8"))));
} else {
  console.error("usage: compile.js --version | --standard-json < input.json");
  process.exit(2);
}
