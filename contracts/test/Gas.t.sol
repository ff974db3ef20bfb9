// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Federation} from "../src/Federation.sol";
import {RecordAndReward} from "../src/RecordAndReward.sol";
import {Refusal} from "../src/Refusal.sol";
import {Fixture} from "./Fixture.sol";
import {VM} from "./Vm.sol";

/// @notice What a run costs in gas, transaction by transaction. See the table with `forge test -vv --match-contract Gas`.
/// @dev Isolated: every call from a test is a transaction of its own, with 21,000 gas, its calldata, cold storage and
///      refunds included. What the calldata costs is nevertheless computed here, to check that it is included.
contract GasTest is Fixture {
    uint256 internal constant DEVICES = 50;
    uint256 internal constant BUDGET = 25_000;
    uint256 internal constant FIRST_KEY = 1e6;
    uint256 internal constant INTRINSIC = 21_000;

    string internal constant HEADING =
        "transaction                         gas in all   per device   of which calldata";

    RecordAndReward internal federation;
    uint64 internal budget;

    event log(string line);

    /// forge-config: default.isolate = true
    function test_GasOfRuleGain() public {
        _measureSubmissions(RecordAndReward.Rule.Gain, "submit, rule Gain");
    }

    /// forge-config: default.isolate = true
    function test_GasOfRuleTrend() public {
        _measureSubmissions(RecordAndReward.Rule.Trend, "submit, rule Trend");
    }

    /// forge-config: default.isolate = true
    function test_GasOfRuleThreshold() public {
        _measureSubmissions(RecordAndReward.Rule.Threshold, "submit, rule Threshold");
    }

    /// forge-config: default.isolate = true
    function test_GasOfRuleBoth() public {
        _measureSubmissions(RecordAndReward.Rule.Both, "submit, rule Both");
    }

    /// forge-config: default.isolate = true
    function test_GasOfRuleEither() public {
        _measureSubmissions(RecordAndReward.Rule.Either, "submit, rule Either");
    }

    /// @dev What counting a privacy budget costs more.
    /// forge-config: default.isolate = true
    function test_GasOfABudget() public {
        budget = 8e6;
        _measureSubmissions(RecordAndReward.Rule.Gain, "submit, Gain and a budget");
    }

    /// forge-config: default.isolate = true
    function test_GasOfTheRest() public {
        _deploy(RecordAndReward.Rule.Both);
        emit log(HEADING);
        bytes memory data = abi.encodeCall(Federation.enrol, _devices());
        federation.enrol(_devices());
        _report("enrol", data, DEVICES);

        federation.submit(_batch(0));
        data = abi.encodeCall(Federation.refuse, (VM.addr(FIRST_KEY), Refusal.FalseEvidence));
        federation.refuse(VM.addr(FIRST_KEY), Refusal.FalseEvidence);
        _report("refuse", data, 1);

        // The first device was refused above: it is paid for the first time in version 1.
        address[] memory rest = new address[](DEVICES - 1);
        for (uint256 i = 1; i < DEVICES; ++i) {
            rest[i - 1] = VM.addr(FIRST_KEY + i);
        }
        data = abi.encodeCall(Federation.pay, rest);
        federation.pay(rest);
        _report("pay, first credit", data, DEVICES - 1);

        data = abi.encodeCall(Federation.advance, (SEED, _realistic(1), 1));
        federation.advance(SEED, _realistic(1), _total(federation));
        _report("advance", data, 1);

        federation.submit(_batch(1));
        data = abi.encodeCall(Federation.pay, rest);
        federation.pay(rest);
        _report("pay, later credit", data, DEVICES - 1);

        data = abi.encodeCall(federation.withdraw, VM.addr(FIRST_KEY + 1));
        federation.withdraw(VM.addr(FIRST_KEY + 1));
        _report("withdraw", data, 1);
    }

    function _measureSubmissions(RecordAndReward.Rule rule, string memory name) internal {
        _deploy(rule);
        federation.enrol(_devices());
        emit log(HEADING);
        for (uint32 version; version < 2; ++version) {
            Federation.SignedContribution[] memory batch = _batch(version);
            federation.submit(batch);
            string memory label = string.concat(name, ", version ", VM.toString(version));
            uint256 gas = _report(label, abi.encodeCall(Federation.submit, batch), DEVICES);
            VM.assertLe(gas, BUDGET * DEVICES, label);
            VM.assertTrue(_due(federation, VM.addr(FIRST_KEY)) > 0);
            VM.assertTrue(_due(federation, VM.addr(FIRST_KEY + DEVICES - 1)) > 0);
            federation.pay(_devices());
            federation.advance(SEED, _realistic(version + 1), _total(federation));
        }
    }

    /// @dev Logs a line about the last transaction.
    function _report(string memory name, bytes memory data, uint256 devices) internal returns (uint256 gas) {
        gas = VM.lastCallGas().gasTotalUsed;
        uint256 calldataGas = _calldataGas(data);
        VM.assertGe(gas, INTRINSIC + calldataGas, "not measured as a transaction");
        emit log(string.concat(
                _pad(name, 36),
                _pad(VM.toString(gas), 13),
                _pad(VM.toString(gas / devices), 13),
                VM.toString(calldataGas / devices)
            ));
    }

    /// @dev EIP-2028: 16 for each nonzero byte, 4 for each zero byte.
    function _calldataGas(bytes memory data) internal pure returns (uint256 gas) {
        for (uint256 i; i < data.length; ++i) {
            gas += data[i] == 0 ? 4 : 16;
        }
    }

    function _pad(string memory text, uint256 width) internal pure returns (string memory) {
        while (bytes(text).length < width) {
            text = string.concat(text, " ");
        }
        return text;
    }

    function _deploy(RecordAndReward.Rule rule) internal {
        federation = new RecordAndReward(
            token,
            RecordAndReward.Plan({
                digest: PLAN,
                rule: rule,
                thresholdPpm: 250_000,
                gainPpm: 10_000,
                clearPpm: 300_000,
                harmPpm: 450_000,
                leastPpm: 200_000,
                rate: 1e15,
                maxDataCost: 60_000,
                patience: PATIENCE,
                budget: budget
            }),
            _realistic(0)
        );
        require(token.transfer(address(federation), 1e24));
    }

    function _devices() internal pure returns (address[] memory devices) {
        devices = new address[](DEVICES);
        for (uint256 i; i < DEVICES; ++i) {
            devices[i] = VM.addr(FIRST_KEY + i);
        }
    }

    function _batch(uint32 version) internal view returns (Federation.SignedContribution[] memory batch) {
        batch = new Federation.SignedContribution[](DEVICES);
        for (uint256 i; i < DEVICES; ++i) {
            batch[i] = _sign(
                FIRST_KEY + i,
                federation,
                Federation.Contribution({
                    device: VM.addr(FIRST_KEY + i),
                    version: version,
                    // forge-lint: disable-next-line(unsafe-typecast)
                    dataCost: uint32(901 + 4 * i),
                    digest: _random("update", i),
                    cid: abi.encodePacked(bytes4(0x01551220), _random("sealed update", i)),
                    classes: 0x3ff,
                    errors: abi.encodePacked(
                        _error(903_400, i),
                        _error(412_300, i),
                        _error(287_600, i),
                        _error(231_200, i),
                        _error(198_700, i),
                        _error(96_530, i)
                    ),
                    spent: budget == 0 ? 0 : 1_234_567 * (version + 1)
                })
            );
        }
    }

    function _error(uint32 around, uint256 i) internal pure returns (uint32) {
        // forge-lint: disable-next-line(unsafe-typecast)
        return around + uint32(i * 97);
    }

    function _realistic(uint32 version) internal pure returns (Federation.Model memory) {
        return _model(_random("model", version));
    }

    /// @dev 32 bytes, none of them zero.
    function _random(string memory what, uint256 i) internal pure returns (bytes32 value) {
        value = keccak256(abi.encode(what, i));
        for (uint256 shift; shift < 256; shift += 8) {
            if ((uint256(value) >> shift) & 0xff == 0) value |= bytes32(uint256(0xa5) << shift);
        }
    }
}
