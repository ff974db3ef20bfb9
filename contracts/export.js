#!/usr/bin/env node
// Writes what Python needs of forge's output to the package, in a stable form: the ABI, the code that creates a contract,
// and the code that is then on the chain, with zeros where its immutables are and the places of these.
"use strict";
const fs = require("node:fs");
const path = require("node:path");

const target = path.join(__dirname, "..", "flower_chain", "ledger", "contracts");
for (const name of ["AccessList", "BlockFlow", "DataTrust", "RecordAndReward", "RewardToken"]) {
  const output = path.join(__dirname, "out", `${name}.sol`, `${name}.json`);
  const { abi, bytecode, deployedBytecode: deployed } = JSON.parse(fs.readFileSync(output, "utf8"));
  const places = Object.values(deployed.immutableReferences).flat().sort((one, other) => one.start - other.start);
  const immutables = places.map(({ start, length }) => `${start}:${length}`).join(" ");
  const artifact = { name, abi, bytecode: bytecode.object, runtime: deployed.object, immutables };
  fs.writeFileSync(path.join(target, `${name}.json`), JSON.stringify(artifact, null, 1) + "\n");
}
