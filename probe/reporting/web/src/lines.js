export const lines = { Body: () => null, readout: () => "", draw: () => ({ width: 1, height: 1 }) };
