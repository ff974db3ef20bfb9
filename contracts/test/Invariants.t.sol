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

    /// @notice How many contributions of a device were accepted for a version, and the most that ever were.
    mapping(address device => mapping(uint32 version => uint256 count)) public contributions;
    uint256 public mostContributions;

    /// @notice Who can't contribute to a version any more: the contract judged it or the owner refused it.
    mapping(address device => mapping(uint32 version => bool yes)) public settled;

    /// @notice Whom the owner refused, and how many payments they got for the same version.
    mapping(address device => mapping(uint32 version => bool yes)) public refused;
    uint256 public paymentsToRefused;

    /// @notice What is due to each device by the logs: accepted, not refused since and not paid.
    mapping(address device => uint256 amount) public due;

    /// @notice What each device was paid less what it withdrew, by the logs.
    mapping(address device => uint256 amount) public owed;

    /// @notice What was accepted and not refused in each version, and since when, and what of it is settled.
    mapping(uint32 version => uint256 amount) public total;
    mapping(uint32 version => uint256 time) public since;
    mapping(uint32 version => uint256 amount) public done;

    /// @notice What was paid for each version, and what the pool held at the first payment.
    mapping(uint32 version => uint256 amount) public paid;
    mapping(uint32 version => uint256 amount) public funds;

    /// @notice The versions that were closed, and those whose pool was said to be short.
    mapping(uint32 version => bool yes) public closed;
    mapping(uint32 version => bool yes) public short;

    /// @notice All that came in, all that was paid, and all that went out again, to devices and to the owner.
    uint256 public funded;
    uint256 public credited;
    uint256 public withdrawn;
    uint256 public swept;

    /// @notice How many contributions were accepted of somebody who is not enrolled, after a judgement, or in a version
    ///         that was closed; payments of other amounts than the share that is due; actions of somebody who may not
    ///         do them, and of anybody after the end; and actions that failed without a reason.
    uint256 public wrongs;

    /// @notice How often each action had an effect, so that a campaign that tests nothing shows.
    uint256 public acceptances;
    uint256 public ownSubmissions;
    uint256 public closes;
    uint256 public refusals;
    uint256 public lateRefusals;
    uint256 public omissions;
    uint256 public payments;
    uint256 public strangersPayments;
    uint256 public shortPayments;
    uint256 public advances;
    uint256 public sweeps;

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
        address device = devices[who % (KEYS - 1)];
        bool allowed = !_enrolled(device) && !federation.finished();
        bool owner = _act(by);
        try federation.enrol(_one(device)) {
            if (!owner || !allowed) ++wrongs;
        } catch {
            if (owner && allowed) ++wrongs;
        }
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
        batch[1] = _item((first + who / KEYS % KEYS) % KEYS, uint96(asked / 1e6 % 1e6), fault / 8 % 8);
        _submit(batch, by);
    }

    /// @dev A good one, of a device that can still contribute if there is one. One in eight is free, one in four comes
    ///      from the device itself. If the version is closed, the owner mostly ends it before.
    function contribute(uint256 who, uint96 asked, uint256 by) external {
        if (closed[federation.version()] && by % 4 != 0) _settle(_unpaid(who), 1);
        uint32 version = federation.version();
        for (uint256 i; i < KEYS - 1 && settled[devices[who % (KEYS - 1)]][version]; ++i) {
            who = (who % (KEYS - 1)) + 1;
        }
        who %= KEYS - 1;
        _submit(_one(_item(who, asked % 8 == 0 ? 0 : uint96(asked % 1e6), 7)), by / 4 % 4 == 0 ? 3 * who : 1);
    }

    /// @dev Seldom before anybody is accepted.
    function close(uint256 by) external {
        if (total[federation.version()] == 0 && by % 8 != 0) return;
        bool allowed = !federation.finished();
        VM.recordLogs();
        bool owner = _act(by);
        try federation.close() {
            if (!owner || !allowed) ++wrongs;
            _book(VM.getRecordedLogs());
            if (!closed[federation.version()]) ++wrongs;
        } catch {
            if (owner && allowed) ++wrongs;
        }
    }

    /// @dev Two in three findings are the owner's to make.
    function refuse(uint256 who, uint256 reason, uint256 by) external {
        Refusal finding = Refusal(reason % (uint256(type(Refusal).max) + 1));
        address device = devices[who % KEYS];
        uint32 version = federation.version();
        bool allowed = finding > Refusal.Worthless && finding < Refusal.OverBudget && !federation.finished();
        if (done[version] != 0 && settled[device][version]) allowed = false;
        VM.recordLogs();
        bool owner = _act(by);
        try federation.refuse(device, finding) {
            if (!owner || !allowed) ++wrongs;
            _book(VM.getRecordedLogs());
        } catch {
            if (owner && allowed) ++wrongs;
        }
    }

    /// @dev It moves no money. Of a device that contributed, if there is one.
    function leaveOut(uint256 who, uint256 reason, uint256 by) external {
        Refusal finding = Refusal(reason % (uint256(type(Refusal).max) + 1));
        uint32 version = federation.version();
        for (uint256 i; i < KEYS && !settled[devices[who % KEYS]][version]; ++i) {
            who = (who % KEYS) + 1;
        }
        address device = devices[who % KEYS];
        bool allowed = finding > Refusal.Worthless && finding < Refusal.OverBudget && !federation.finished();
        if (done[version] == 0 || due[device] != 0 || !settled[device][version]) allowed = false;
        bool owner = _act(by);
        try federation.leaveOut(device, finding) {
            if (!owner || !allowed) ++wrongs;
            ++omissions;
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
        uint32 version = federation.version();
        bool allowed = total[version] == done[version] && !federation.finished();
        bool owner = _act(by);
        try federation.advance(SEED, _model("next model"), total[version]) {
            if (!owner || !allowed) ++wrongs;
            ++advances;
        } catch {
            if (owner && allowed) ++wrongs;
        }
    }

    /// @dev Whatever the others did, it always lets the owner go on. Seldom before anybody is accepted.
    function settle(uint256 who, uint256 by) external {
        if (total[federation.version()] == 0 && by % 8 != 0) return;
        _settle(_unpaid(who), by);
    }

    /// @dev Seldom at first, or most campaigns would end before anything happened; whenever it is asked for in the end.
    function finish(uint256 by, uint256 chance) external {
        uint256 odds = federation.finished() ? 1 : acceptances < 12 ? 128 : 2;
        if (uint256(keccak256(abi.encode(chance))) % odds != 0) return;
        bool allowed = total[federation.version()] == 0;
        uint256 pool = federation.pool();
        uint256 before = token.balanceOf(address(this));
        bool owner = _act(by);
        try federation.finish() {
            if (!owner || !allowed || !federation.finished()) ++wrongs;
            if (token.balanceOf(address(this)) - before != pool) ++wrongs;
            swept += pool;
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
            withdrawn += owed[device];
            owed[device] = 0;
        } catch {
            if (owed[device] != 0) ++wrongs;
        }
    }

    /// @dev Half the time somebody pays then who lost patience.
    function wait(uint256 time, uint256 who) external {
        VM.warp(block.timestamp + time % (2 * PATIENCE));
        if (who % 2 == 0) _pay(_unpaid(who), 3 * (who % KEYS));
    }

    function _submit(Federation.SignedContribution[] memory batch, uint256 by) private {
        address actor = _actor(by);
        bool allowed = !federation.finished() && (actor == address(this) || _enrolled(actor));
        for (uint256 i; i < batch.length; ++i) {
            if (actor != address(this) && actor != batch[i].contribution.device) allowed = false;
        }
        uint256 before = acceptances;
        VM.recordLogs();
        bool owner = _act(by);
        try federation.submit(batch) {
            if (!allowed) ++wrongs;
            _book(VM.getRecordedLogs());
            if (!owner) ownSubmissions += acceptances - before;
        } catch {
            if (allowed) ++wrongs;
        }
    }

    function _pay(address[] memory accounts, uint256 by) private {
        uint32 version = federation.version();
        bool overdue = _overdue(version);
        uint256 pool = federation.pool();
        VM.recordLogs();
        bool owner = _act(by);
        try federation.pay(accounts) {
            if (!owner && !overdue) ++wrongs;
            if (!owner) ++strangersPayments;
            _bookPayments(version, pool, accounts);
        } catch {
            if (owner || overdue) ++wrongs;
        }
    }

    function _settle(address[] memory accounts, uint256 by) private {
        uint32 version = federation.version();
        bool allowed = !federation.finished();
        uint256 pool = federation.pool();
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(Federation.pay, accounts);
        calls[1] = abi.encodeCall(Federation.advance, (SEED, _model("next model"), total[version]));
        VM.recordLogs();
        bool owner = _act(by);
        try federation.multicall(calls) {
            if (!owner || !allowed) ++wrongs;
            _bookPayments(version, pool, accounts);
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

    /// @dev Enters the logs of a call that paid `accounts` for `version` when the pool held `pool`.
    function _bookPayments(uint32 version, uint256 pool, address[] memory accounts) private {
        bool first = done[version] == 0;
        if (first) funds[version] = pool;
        _book(VM.getRecordedLogs());
        if (done[version] == 0) funds[version] = 0;
        if (!closed[version]) ++wrongs;
        if (short[version] != (done[version] != 0 && total[version] > funds[version])) ++wrongs;
        for (uint256 i; i < accounts.length; ++i) {
            if (due[accounts[i]] != 0) ++wrongs;
        }
    }

    /// @dev Enters the logs of one call into the books.
    function _book(Vm.Log[] memory logs) private {
        for (uint256 i; i < logs.length; ++i) {
            Vm.Log memory entry = logs[i];
            if (entry.emitter != address(federation) || entry.topics.length < 2) continue;
            bytes32 kind = entry.topics[0];
            address device = address(uint160(uint256(entry.topics[1])));
            if (kind == Federation.Accepted.selector) {
                (,,,,,,,, uint128 amount) =
                    abi.decode(entry.data, (uint32, bytes32, bytes, uint256, bytes, uint64, bytes32, bytes32, uint128));
                _bookAccepted(device, federation.version(), amount);
            } else if (kind == Federation.Rejected.selector) {
                (,,,,,,,,, Refusal reason) = abi.decode(
                    entry.data, (uint32, uint32, bytes32, bytes, uint256, bytes, uint64, bytes32, bytes32, Refusal)
                );
                if (reason == Refusal.Worthless) settled[device][federation.version()] = true;
            } else if (kind == Federation.Refused.selector) {
                _bookRefused(device, uint32(uint256(entry.topics[2])));
            } else if (kind == Federation.Paid.selector) {
                _bookPaid(device, uint32(uint256(entry.topics[2])), abi.decode(entry.data, (uint256)));
            } else if (kind == Federation.Closed.selector) {
                _mark(closed, uint32(uint256(entry.topics[1])));
                ++closes;
            } else if (kind == Federation.PoolShort.selector) {
                _mark(short, uint32(uint256(entry.topics[1])));
            }
        }
    }

    function _bookAccepted(address device, uint32 version, uint256 amount) private {
        if (!_enrolled(device) || closed[version] || settled[device][version]) ++wrongs;
        settled[device][version] = true;
        uint256 count = ++contributions[device][version];
        if (count > mostContributions) mostContributions = count;
        if (total[version] == 0) since[version] = block.timestamp;
        due[device] += amount;
        total[version] += amount;
        ++acceptances;
    }

    function _bookRefused(address device, uint32 version) private {
        // Who is enrolled later may contribute.
        if (_enrolled(device)) (settled[device][version], refused[device][version]) = (true, true);
        total[version] -= due[device];
        due[device] = 0;
        ++refusals;
        if (closed[version]) ++lateRefusals;
        if (contributions[device][version] != 0 && done[version] != 0) ++wrongs;
    }

    function _bookPaid(address device, uint32 version, uint256 amount) private {
        bool tooLittle = total[version] > funds[version];
        uint256 share = tooLittle ? Math.mulDiv(due[device], funds[version], total[version]) : due[device];
        if (due[device] == 0 || amount != share) ++wrongs;
        if (refused[device][version]) ++paymentsToRefused;
        done[version] += due[device];
        due[device] = 0;
        owed[device] += amount;
        paid[version] += amount;
        credited += amount;
        ++payments;
        if (tooLittle) ++shortPayments;
    }

    /// @dev What can be said of a version only once.
    function _mark(mapping(uint32 version => bool yes) storage said, uint32 version) private {
        if (said[version]) ++wrongs;
        said[version] = true;
    }

    function _overdue(uint32 version) private view returns (bool) {
        // forge-lint: disable-next-line(block-timestamp)
        return total[version] > done[version] && block.timestamp >= since[version] + PATIENCE;
    }

    function _enrolled(address device) private view returns (bool enrolled) {
        (enrolled,,,) = federation.devices(device);
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
    function _actor(uint256 by) private view returns (address) {
        return by % 3 != 0 ? address(this) : devices[by / 3 % KEYS];
    }

    /// @dev The next call is the actor's.
    function _act(uint256 by) private returns (bool owner) {
        address actor = _actor(by);
        owner = actor == address(this);
        if (!owner) VM.prank(actor);
    }
}

/// @notice What holds after any calls by anybody in any order.
/// forge-config: default.invariant.runs = 32
/// forge-config: default.invariant.depth = 256
/// forge-config: default.invariant.fail-on-revert = true
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
        uint256 out = handler.withdrawn() + handler.swept();
        VM.assertEq(token.balanceOf(address(federation)), handler.funded() - out);
    }

    /// @dev The pool is what came in and was neither paid nor returned; the credits are those of all devices.
    function invariant_BalanceIsPoolAndCredits() public view {
        uint256 pool = handler.funded() - handler.credited() - handler.swept();
        VM.assertEq(federation.pool(), pool);
        VM.assertEq(token.balanceOf(address(federation)), pool + _credits());
    }

    function invariant_CreditsAreInTheBooks() public view {
        for (uint256 i; i < 5; ++i) {
            VM.assertEq(federation.credits(handler.devices(i)), handler.owed(handler.devices(i)));
        }
        VM.assertEq(federation.totalCredits(), _credits());
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
        uint32 version = federation.version();
        (uint128 due, uint64 dueSince, bool closed, uint128 paid, uint256 pool) = federation.round();
        VM.assertEq(due, handler.total(version));
        VM.assertEq(closed, handler.closed(version));
        VM.assertEq(paid, handler.done(version));
        VM.assertEq(pool, handler.funds(version));
        if (due != 0) VM.assertEq(dueSince, handler.since(version));
    }

    function invariant_NoVersionPaysMoreThanThePool() public view {
        for (uint32 version; version <= federation.version(); ++version) {
            VM.assertLe(handler.paid(version), handler.funds(version));
        }
    }

    function invariant_OneContributionPerDeviceAndVersion() public view {
        VM.assertLe(handler.mostContributions(), 1);
    }

    function invariant_RefusedIsNeverPaid() public view {
        VM.assertEq(handler.paymentsToRefused(), 0);
    }

    /// @dev Every advance is one step forward, and nothing else moves it.
    function invariant_VersionNeverGoesBack() public view {
        VM.assertEq(federation.version(), handler.advances());
    }

    function invariant_NothingIsDueAfterTheEnd() public view {
        (uint128 due,,,,) = federation.round();
        if (federation.finished()) VM.assertEq(due, 0);
    }

    /// @dev Roles kept, none accepted after the close, payments and withdrawals exact: see `Handler.wrongs`.
    function invariant_NothingWrongHappened() public view {
        VM.assertEq(handler.wrongs(), 0);
    }

    /// @dev Counts over eight campaigns of random calls, which are always the same.
    function test_TheCampaignIsNotIdle() public {
        uint256[10] memory counts;
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
            counts[6] += handler.ownSubmissions();
            counts[7] += handler.closes();
            counts[8] += handler.lateRefusals();
            counts[9] += handler.omissions();
        }
        VM.assertGe(counts[0], 8 * 15, "acceptances");
        VM.assertGe(counts[1], 8 * 10, "payments");
        VM.assertGe(counts[2], 8, "payments by strangers");
        VM.assertGe(counts[3], 8, "payments from a short pool");
        VM.assertGe(counts[4], 8 * 8, "versions");
        VM.assertGe(counts[5], 8, "sweeps");
        VM.assertGe(counts[6], 8 * 2, "devices' own submissions");
        VM.assertGe(counts[7], 8 * 8, "closed versions");
        VM.assertGe(counts[8], 8, "refusals after the close");
        VM.assertGe(counts[9], 4, "updates left out");
    }

    /// @dev One action, by a fair draw.
    function _call(uint256 random) internal {
        (uint256 action, uint256 a, uint256 b, uint256 c) =
            (random % 14, random >> 16 & 0xffffffffffff, random >> 64 & 0xffff, random >> 80);
        // `a` has 48 bits.
        // forge-lint: disable-next-line(unsafe-typecast)
        uint96 asked = uint96(a);
        if (action == 0) handler.enrol(b, c);
        else if (action == 1) handler.fund(a);
        else if (action == 2) handler.submit(b, asked, c & 0xff, c >> 8);
        else if (action == 3) handler.contribute(b, asked, c);
        else if (action == 4) handler.close(c);
        else if (action == 5) handler.refuse(b, a, c);
        else if (action == 6) handler.pay(b, c);
        else if (action == 7) handler.payAll(b, c);
        else if (action == 8) handler.advance(c);
        else if (action == 9) handler.settle(b, c);
        else if (action == 10) handler.finish(c, a);
        else if (action == 11) handler.withdraw(b, c);
        else if (action == 12) handler.leaveOut(b, a, c);
        else handler.wait(a, b);
    }

    function _credits() internal view returns (uint256 sum) {
        for (uint256 i; i < 5; ++i) {
            sum += federation.credits(handler.devices(i));
        }
    }
}
