// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

import {Federation} from "../src/Federation.sol";
import {Refusal} from "../src/Refusal.sol";
import {RewardToken} from "../src/RewardToken.sol";
import {Fixture} from "./Fixture.sol";
import {PayAsAsked} from "./Mocks.sol";
import {VM, Vm} from "./Vm.sol";

/// @title Handler
/// @notice Does whatever the fuzzer asks for, as anybody, and keeps its own books from the logs alone.
/// @dev It is the owner when an action draws no other actor. Calls that the contract refuses are swallowed, and are
///      wrong if the books say that it had no reason to.
contract Handler is Fixture {
    uint256 internal constant KEYS = 5;

    PayAsAsked public federation;

    /// @notice The devices 0 to 4; nobody ever enrols the last one.
    address[] public devices;

    /// @notice Who can't contribute to a version any more: it was accepted or the owner refused it.
    mapping(address device => mapping(uint32 version => bool yes)) public settled;

    /// @notice What is due to each device by the logs: accepted, not refused since and not paid.
    mapping(address device => uint256 amount) public due;

    /// @notice What each device was paid less what it withdrew, by the logs.
    mapping(address device => uint256 amount) public owed;

    /// @notice What was accepted and not refused in each version, and since when, and what of it is settled.
    mapping(uint32 version => uint256 amount) public total;
    mapping(uint32 version => uint256 time) public since;
    mapping(uint32 version => uint256 amount) public done;

    /// @notice What was paid for each version, and what the pool held when it closed.
    mapping(uint32 version => uint256 amount) public paid;
    mapping(uint32 version => uint256 amount) public funds;

    /// @notice The versions that were closed.
    mapping(uint32 version => bool yes) public closed;

    /// @notice All that came in, and all that went out again.
    uint256 public funded;
    uint256 public returned;

    /// @notice How many contributions were accepted of somebody who is not enrolled, more than once, after a refusal, or
    ///         in a version that was closed or over; payments of other amounts than the share that is due; versions that
    ///         went back; actions of somebody else that only the owner may do, and of anybody after the end; and
    ///         actions that failed without a reason.
    uint256 public wrongs;

    /// @notice How often each action had an effect, so that a campaign that tests nothing shows.
    uint256 public acceptances;
    uint256 public refusals;
    uint256 public payments;
    uint256 public strangersPayments;
    uint256 public shortPayments;
    uint256 public advances;
    uint256 public sweeps;

    uint32 private lastVersion;

    constructor() {
        federation = new PayAsAsked(token, PLAN, PATIENCE, _model("model 0"));
        for (uint256 i; i < KEYS; ++i) {
            devices.push(VM.addr(1 + i));
        }
        for (uint256 i; i < KEYS - 2; ++i) {
            federation.enrol(_one(devices[i]));
        }
    }

    function enrol(uint256 who, uint256 by) external {
        bool running = !federation.finished();
        bool owner = _act(by);
        try federation.enrol(_one(devices[who % (KEYS - 1)])) {
            if (!owner || !running) ++wrongs;
        } catch {}
    }

    /// @dev As much as one contribution asks for, in the mean: the pool is short now and then.
    function fund(uint256 amount) external {
        amount %= 1e6;
        funded += amount;
        require(token.transfer(address(federation), amount));
    }

    /// @dev Three in eight are bad in some way. Two items, so that one can be bad and the other good.
    function submit(uint256 who, uint96 asked, uint256 fault, uint256 by) external {
        uint256 first = who % KEYS;
        Federation.SignedContribution[] memory batch = new Federation.SignedContribution[](2);
        batch[0] = _item(first, uint96(asked % 1e6), fault % 8);
        batch[1] = _item((first + 1 + who / KEYS % (KEYS - 1)) % KEYS, uint96(asked / 1e6 % 1e6), fault / 8 % 8);
        _submit(batch, by);
    }

    /// @dev A good one, of a device that can still contribute if there is one. One in eight is free. If the version is
    ///      closed, the owner mostly ends it before.
    function contribute(uint256 who, uint96 asked, uint256 by) external {
        if (closed[federation.version()] && by % 4 != 0) {
            _pay(_unpaid(who), 1);
            _advance(1);
        }
        uint32 version = federation.version();
        for (uint256 i; i < KEYS - 1 && settled[devices[who % (KEYS - 1)]][version]; ++i) {
            who = (who % (KEYS - 1)) + 1;
        }
        _submit(_one(_item(who % (KEYS - 1), asked % 8 == 0 ? 0 : uint96(asked % 1e6), 7)), by);
    }

    /// @dev Two in three findings are the owner's to make.
    function refuse(uint256 who, uint256 reason, uint256 by) external {
        Refusal finding = Refusal(reason % (uint256(type(Refusal).max) + 1));
        bool allowed = finding > Refusal.Worthless && !closed[federation.version()] && !federation.finished();
        VM.recordLogs();
        bool owner = _act(by);
        try federation.refuse(devices[who % KEYS], finding) {
            if (!owner || !allowed) ++wrongs;
            _book(VM.getRecordedLogs());
        } catch {
            if (owner && allowed) ++wrongs;
        }
    }

    /// @dev One device, whether anything is due to it or not; but seldom somebody who closes the version for nothing.
    function pay(uint256 who, uint256 by) external {
        for (uint256 i; i < KEYS && due[devices[who % KEYS]] == 0 && by % 8 != 0; ++i) {
            who = (who % KEYS) + 1;
        }
        if (due[devices[who % KEYS]] == 0 && by % 8 != 0) return;
        _pay(_one(devices[who % KEYS]), by);
    }

    /// @dev All to whom something is due, and one to whom maybe nothing is. Seldom nobody: that closes the version before
    ///      anybody is accepted.
    function payAll(uint256 who, uint256 by) external {
        address[] memory accounts = _unpaid(who);
        if (accounts.length > 1 || by % 8 == 0) _pay(accounts, by);
    }

    function advance(uint256 by) external {
        _advance(by);
    }

    /// @dev Seldom at first, or most campaigns would end before anything happened; whenever it is asked for in the end.
    function finish(uint256 by, uint256 chance) external {
        uint256 odds = federation.finished() ? 1 : acceptances < 16 ? 128 : 4;
        if (uint256(keccak256(abi.encode(chance))) % odds != 0) return;
        bool allowed = total[lastVersion] == 0;
        uint256 pool = federation.pool();
        uint256 before = token.balanceOf(address(this));
        bool owner = _act(by);
        try federation.finish() {
            if (!owner || !allowed || !federation.finished()) ++wrongs;
            if (token.balanceOf(address(this)) - before != pool) ++wrongs;
            returned += pool;
            if (pool != 0) ++sweeps;
        } catch {
            if (owner && allowed) ++wrongs;
        }
    }

    function withdraw(uint256 who, uint256 by) external {
        address device = devices[who % KEYS];
        uint256 before = token.balanceOf(device);
        _act(by);
        try federation.withdraw(device) {
            if (token.balanceOf(device) - before != owed[device]) ++wrongs;
            returned += owed[device];
            owed[device] = 0;
        } catch {
            if (owed[device] != 0) ++wrongs;
        }
    }

    function wait(uint256 time) external {
        VM.warp(block.timestamp + time % (2 * PATIENCE));
    }

    function _submit(Federation.SignedContribution[] memory batch, uint256 by) private {
        VM.recordLogs();
        bool owner = _act(by % 9 == 0 ? by : 1);
        try federation.submit(batch) {
            if (!owner || federation.finished()) ++wrongs;
            _book(VM.getRecordedLogs());
        } catch {
            if (owner && !federation.finished()) ++wrongs;
        }
    }

    function _pay(address[] memory accounts, uint256 by) private {
        uint32 version = federation.version();
        // forge-lint: disable-next-line(block-timestamp)
        bool overdue = total[version] > done[version] && block.timestamp >= since[version] + PATIENCE;
        uint256 pool = federation.pool();
        VM.recordLogs();
        bool owner = _act(by);
        try federation.pay(accounts) {
            if (!owner && !overdue) ++wrongs;
            if (!closed[version]) (closed[version], funds[version]) = (true, pool);
            if (!owner) ++strangersPayments;
            _book(VM.getRecordedLogs());
            for (uint256 i; i < accounts.length; ++i) {
                if (due[accounts[i]] != 0) ++wrongs;
            }
        } catch {
            if (owner || overdue) ++wrongs;
        }
    }

    function _advance(uint256 by) private {
        bool allowed = total[lastVersion] == done[lastVersion] && !federation.finished();
        bool owner = _act(by);
        try federation.advance(SEED, _model("next model")) {
            if (!owner || !allowed || federation.version() != lastVersion + 1) ++wrongs;
            lastVersion = federation.version();
            ++advances;
        } catch {
            if (owner && allowed) ++wrongs;
        }
    }

    /// @dev All to whom something is due, and `who`.
    function _unpaid(uint256 who) private view returns (address[] memory accounts) {
        accounts = new address[](KEYS + 1);
        accounts[0] = devices[who % KEYS];
        uint256 count = 1;
        for (uint256 i; i < KEYS; ++i) {
            if (due[devices[i]] != 0) accounts[count++] = devices[i];
        }
        assembly ("memory-safe") {
            mstore(accounts, count)
        }
    }

    /// @dev Enters the logs of one call into the books.
    function _book(Vm.Log[] memory logs) private {
        for (uint256 i; i < logs.length; ++i) {
            Vm.Log memory entry = logs[i];
            if (entry.emitter != address(federation) || entry.topics.length < 2) continue;
            address device = address(uint160(uint256(entry.topics[1])));
            if (entry.topics[0] == Federation.Accepted.selector) {
                (,,,,,,, uint128 amount) =
                    abi.decode(entry.data, (uint32, bytes32, bytes, uint256, bytes, bytes32, bytes32, uint128));
                _bookAccepted(device, federation.version(), amount);
            } else if (entry.topics[0] == Federation.Refused.selector) {
                _bookRefused(device, uint32(uint256(entry.topics[2])));
            } else if (entry.topics[0] == Federation.Paid.selector) {
                _bookPaid(device, uint32(uint256(entry.topics[2])), abi.decode(entry.data, (uint256)));
            }
        }
    }

    function _bookAccepted(address device, uint32 version, uint256 amount) private {
        (bool enrolled,,) = federation.devices(device);
        if (!enrolled || closed[version] || settled[device][version]) ++wrongs;
        settled[device][version] = true;
        if (total[version] == 0) since[version] = block.timestamp;
        due[device] += amount;
        total[version] += amount;
        ++acceptances;
    }

    function _bookRefused(address device, uint32 version) private {
        if (closed[version]) ++wrongs;
        (bool enrolled,,) = federation.devices(device);
        if (enrolled) settled[device][version] = true;
        total[version] -= due[device];
        due[device] = 0;
        ++refusals;
    }

    function _bookPaid(address device, uint32 version, uint256 amount) private {
        bool short = total[version] > funds[version];
        uint256 share = short ? Math.mulDiv(due[device], funds[version], total[version]) : due[device];
        if (due[device] == 0 || amount != share) ++wrongs;
        done[version] += due[device];
        due[device] = 0;
        owed[device] += amount;
        paid[version] += amount;
        ++payments;
        if (short) ++shortPayments;
    }

    /// @dev 0: forged, 1: another version, 2: worthless; else good.
    function _item(uint256 who, uint96 asked, uint256 fault)
        private
        view
        returns (Federation.SignedContribution memory)
    {
        Federation.Contribution memory c = _contribution(devices[who]);
        c.version = federation.version();
        c.digest = bytes32(uint256(asked));
        if (fault == 1) c.version = c.version == 0 || asked % 2 == 0 ? c.version + 1 : c.version - 1;
        if (fault == 2) c.dataCost = 0;
        return _sign(fault == 0 ? 0xbad : 1 + who, federation, c);
    }

    /// @dev Two in three actions are the owner's, the others a device's.
    function _act(uint256 by) private returns (bool owner) {
        owner = by % 3 != 0;
        if (!owner) VM.prank(devices[by / 3 % KEYS]);
    }
}

/// @notice What holds after any calls by anybody in any order.
/// forge-config: default.invariant.runs = 32
/// forge-config: default.invariant.depth = 256
contract InvariantsTest is Fixture {
    Handler internal handler;
    Federation internal federation;

    function setUp() public {
        handler = new Handler();
        federation = handler.federation();
        token = RewardToken(address(federation.token()));
    }

    /// @notice Tells Foundry to call nobody but the handler.
    function targetContracts() external view returns (address[] memory) {
        return _one(address(handler));
    }

    /// @dev Nothing comes from nowhere, nothing is lost.
    function invariant_BalanceIsWhatCameInAndNotOut() public view {
        VM.assertEq(token.balanceOf(address(federation)), handler.funded() - handler.returned());
    }

    function invariant_BalanceIsPoolAndCredits() public view {
        VM.assertEq(token.balanceOf(address(federation)), federation.pool() + federation.totalCredits());
    }

    function invariant_TotalCreditsIsTheSum() public view {
        uint256 sum;
        for (uint256 i; i < 5; ++i) {
            VM.assertEq(federation.credits(handler.devices(i)), handler.owed(handler.devices(i)));
            sum += federation.credits(handler.devices(i));
        }
        VM.assertEq(federation.totalCredits(), sum);
    }

    function invariant_RoundIsTheSumOfItsDevices() public view {
        uint256 sum;
        for (uint256 i; i < 5; ++i) {
            VM.assertEq(_due(federation, handler.devices(i)), handler.due(handler.devices(i)));
            sum += _due(federation, handler.devices(i));
        }
        (uint128 due,,, uint128 paid,) = federation.round();
        VM.assertEq(due - paid, sum);
    }

    function invariant_RoundIsInTheBooks() public view {
        (uint128 due, uint64 dueSince,, uint128 paid,) = federation.round();
        VM.assertEq(due, handler.total(federation.version()));
        VM.assertEq(paid, handler.done(federation.version()));
        if (due != 0) VM.assertEq(dueSince, handler.since(federation.version()));
    }

    function invariant_NoVersionPaysMoreThanThePool() public view {
        uint32 version = federation.version();
        VM.assertLe(handler.paid(version), handler.funds(version));
    }

    function invariant_ClosedIsClosed() public view {
        (,, bool closed,, uint256 pool) = federation.round();
        VM.assertEq(closed, handler.closed(federation.version()));
        VM.assertEq(pool, handler.funds(federation.version()));
    }

    function invariant_NothingIsDueAfterTheEnd() public view {
        (uint128 due,,,,) = federation.round();
        if (federation.finished()) VM.assertEq(due, 0);
    }

    /// @dev One contribution per device and version, none after the close, refused ones never paid, versions never go
    ///      back, roles kept, payments and withdrawals exact: see `Handler.wrongs`.
    function invariant_NothingWrongHappened() public view {
        VM.assertEq(handler.wrongs(), 0);
    }

    /// @dev Counts over eight campaigns of random calls, which are always the same.
    function test_TheCampaignIsNotIdle() public {
        uint256[6] memory counts;
        for (uint256 seed; seed < 8; ++seed) {
            setUp();
            for (uint256 i; i < 256; ++i) {
                _call(uint256(keccak256(abi.encode(seed, i))));
            }
            VM.assertEq(handler.wrongs(), 0);
            counts[0] += handler.acceptances();
            counts[1] += handler.payments();
            counts[2] += handler.strangersPayments();
            counts[3] += handler.shortPayments();
            counts[4] += handler.advances();
            counts[5] += handler.sweeps();
        }
        VM.assertGe(counts[0], 8 * 20, "acceptances");
        VM.assertGe(counts[1], 8 * 10, "payments");
        VM.assertGe(counts[2], 8, "payments by strangers");
        VM.assertGe(counts[3], 8, "payments from a short pool");
        VM.assertGe(counts[4], 8 * 8, "versions");
        VM.assertGe(counts[5], 8, "sweeps");
    }

    /// @dev One action, by a fair draw.
    function _call(uint256 random) internal {
        (uint256 action, uint256 a, uint256 b, uint256 c) =
            (random % 11, random >> 16 & 0xffffffffffff, random >> 64 & 0xffff, random >> 80);
        // `a` has 48 bits.
        // forge-lint: disable-next-line(unsafe-typecast)
        uint96 asked = uint96(a);
        if (action == 0) handler.enrol(b, c);
        else if (action == 1) handler.fund(a);
        else if (action == 2) handler.submit(b, asked, c & 0xff, c >> 8);
        else if (action == 3) handler.contribute(b, asked, c);
        else if (action == 4) handler.refuse(b, a, c);
        else if (action == 5) handler.pay(b, c);
        else if (action == 6) handler.payAll(b, c);
        else if (action == 7) handler.advance(c);
        else if (action == 8) handler.finish(c, a);
        else if (action == 9) handler.withdraw(b, c);
        else handler.wait(a);
    }
}
