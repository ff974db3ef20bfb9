// js-ipfs ends when a client hangs up while it looks for blocks, by its own handler of unhandled
// rejections; Kubo does not. So that one goes.
import './node_modules/ipfs/src/cli.js'

process.removeAllListeners('unhandledRejection')
process.on('unhandledRejection', (error) => console.error(error))
