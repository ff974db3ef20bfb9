#!/usr/bin/env node
// Writes what Python needs of forge's output (ABI and bytecode) to the package, in a stable form.
"use strict";
const fs = require("node:fs");
const path = require("node:path");

const target = path.join(__dirname, "..", "flower_chain", "ledger", "contracts");
for (const name of ["BlockFlow", "RecordAndReward", "RewardToken"]) {
  const output = path.join(__dirname, "out", `${name}.sol`, `${name}.json`);
  const { abi, bytecode } = JSON.parse(fs.readFileSync(output, "utf8"));
  const artifact = { name, abi, bytecode: bytecode.object };
  fs.writeFileSync(path.join(target, `${name}.json`), JSON.stringify(artifact, null, 1) + "\n");
}
